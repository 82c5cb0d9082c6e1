"""What tools/make_oracle.py knows of each reference model: class and config of transformers, and how its GGUF looks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]

VOCAB_SIZE = 64
TEXT_VOCAB_SIZE = 320  # 3 control tokens, 256 bytes, 61 syllables
HIDDEN_SIZE = 32
NUM_HEADS = 4
HEAD_DIM = 8
INTERMEDIATE_SIZE = 64
WINDOW = 16
CONTEXT = 128

# Module of transformers, without the path in front, to tensor of GGUF.
NAMES = {
    **dict.fromkeys(("wte", "embed_tokens", "embed_in", "word_embeddings"), "token_embd"),
    **dict.fromkeys(("ln_f", "norm", "norm_f", "final_layer_norm", "final_layernorm"), "output_norm"),
    "wpe": "position_embd",
    "word_embeddings_layernorm": "token_embd_norm",
    "lm_head": "output",
    **dict.fromkeys(("ln_1", "norm_1", "input_layernorm"), "attn_norm"),
    **dict.fromkeys(("ln_2", "norm_2", "post_attention_layernorm"), "ffn_norm"),
    **{f"{module}.query_key_value": "attn_qkv" for module in ("attention", "self_attention", "self_attn")},
    **{f"{module}.dense": "attn_output" for module in ("attention", "self_attention", "self_attn")},
    **{f"self_attn.{x}_proj": f"attn_{x}" for x in "qkv"},
    **{f"attn.attention.{x}_proj": f"attn_{x}" for x in "qkv"},
    **{f"self_attn.{x}_norm": f"attn_{x}_norm" for x in "qk"},
    **{f"self_attn.{x}_layernorm": f"attn_{x}_norm" for x in "qk"},
    **{f"self_attn.{x}_layernorm.norms.{i}": f"attn_{x}_norm" for x in "qk" for i in range(NUM_HEADS)},
    **dict.fromkeys(("attn.c_attn", "attn.Wqkv"), "attn_qkv"),
    **dict.fromkeys(
        ("self_attn.o_proj", "attn.c_proj", "attn.out_proj", "attn.attention.out_proj"), "attn_output"
    ),
    "mlp.gate_proj": "ffn_gate",
    **dict.fromkeys(("mlp.up_proj", "mlp.c_fc", "mlp.fc1", "mlp.dense_h_to_4h", "ffn.up_proj"), "ffn_up"),
    **dict.fromkeys(("mlp.down_proj", "mlp.c_proj", "mlp.fc2", "mlp.dense_4h_to_h", "ffn.down_proj"), "ffn_down"),
}
SANDWICH = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}

Change = Callable[[Any, str, str, F32], dict[str, F32]]


def unchanged(config: Any, name: str, kind: str, x: F32) -> dict[str, F32]:
    return {name: x}


def permuted(config: Any, name: str, kind: str, x: F32) -> dict[str, F32]:
    """Rows of q and k so that rope turns neighbours: i and i + head_dim / 2 of a head become 2i and 2i + 1."""
    if name in ("attn_q", "attn_k"):
        x = x.reshape(-1, 2, HEAD_DIM // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
    return {name: x}


def by_kind_not_head(config: Any, name: str, kind: str, x: F32) -> dict[str, F32]:
    """attn_qkv with the rows of q, k and v of each head side by side -> those of q, then k, then v."""
    if name == "attn_qkv":
        kv_heads = getattr(config, "num_kv_heads", NUM_HEADS)
        groups = x.reshape(kv_heads, -1, HEAD_DIM, *x.shape[1:])
        parts = (groups[:, :-2], groups[:, -2], groups[:, -1])
        x = np.concatenate([part.reshape(-1, *x.shape[1:]) for part in parts])
    return {name: x}


def plus_one(config: Any, name: str, kind: str, x: F32) -> dict[str, F32]:
    """Norms that transformers holds minus one."""
    return {name: x + 1 if name.endswith("norm") and kind == "weight" else x}


@dataclass(frozen=True)
class Recipe:
    """One reference model; `options` are arguments of the transformers config beside the usual sizes."""

    architecture: str
    hf_class: str
    notes: str
    options: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)  # metadata beside the usual ones; None removes one
    names: dict[str, str] = field(default_factory=dict)  # beside NAMES
    change: Change = unchanged
    tied: bool = False
    layers: int = 2
    kv_heads: int = 2
    layer_norm: bool = False
    sizes: dict[str, str] = field(default_factory=dict)  # names of sizes in configs that do not use the usual ones
    intermediate: int = INTERMEDIATE_SIZE
    tensors: dict[str, list[float]] = field(default_factory=dict)  # beside those of the model
    vocab: int = VOCAB_SIZE  # or TEXT_VOCAB_SIZE, for a tokenizer that knows all texts
    hidden: int = HIDDEN_SIZE
    context: int = CONTEXT
    tensor_name: Callable[[str], str] | None = None  # from transformers' name, of models with two sides
    embedding_scale: float = 1.0  # of the random embeddings: small ones do not make a tied model repeat its input

    def model_class(self) -> Any:
        """That of transformers, or of `oracle_modules.py`, which has what transformers lacks."""
        import oracle_modules
        import transformers

        return getattr(oracle_modules, self.hf_class, None) or getattr(transformers, self.hf_class)

    def config(self) -> Any:
        usual: dict[str, Any] = {
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": NUM_HEADS,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": self.context,
        }
        sizes = {self.sizes.get(name, name): value for name, value in usual.items()}
        sizes.pop("", None)
        ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": self.tied}
        return self.model_class().config_class(**sizes, **ids, **self.options)

    def metadata(self, config: Any) -> dict[str, Any]:
        eps = "attention.layer_norm_epsilon" if self.layer_norm else "attention.layer_norm_rms_epsilon"
        names = ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps", "rms_norm_eps")
        epsilon = [getattr(config, name, None) for name in names]
        theta = (getattr(config, "rope_parameters", None) or {}).get("rope_theta")
        keys = {
            "rope.freq_base": theta,
            "block_count": self.layers,
            "context_length": self.context,
            "embedding_length": self.hidden,
            "feed_forward_length": self.intermediate,
            "attention.head_count": NUM_HEADS,
            "attention.head_count_kv": self.kv_heads,
            eps: next((float(value) for value in epsilon if value is not None), 1e-5),
            **self.keys,
        }
        return {key: value for key, value in keys.items() if value is not None}


ROPE = {"rope_theta": 10000.0, "rope_type": "default"}
GPT2_SIZES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "num_key_value_heads": "",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
}
BLOOM_SIZES = {**GPT2_SIZES, "hidden_size": "hidden_size", "intermediate_size": "", "max_position_embeddings": ""}
MPT_SIZES = {
    **BLOOM_SIZES,
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "max_position_embeddings": "max_seq_len",
}
FUSED_QKV = {f"self_attn.{x}_proj": "attn_qkv" for x in "qkv"}
HEADS = {"attention.key_length": HEAD_DIM, "attention.value_length": HEAD_DIM}
PARTIAL = {"rope_parameters": {**ROPE, "partial_rotary_factor": 0.5}}


def dense(architecture: str, hf_class: str, notes: str, **fields: Any) -> Recipe:
    return Recipe(architecture, hf_class, notes, **fields)


# Of the three quarters of a head that turn: one number a pair.
SHORT, LONG = [1.0, 1.03, 1.06], [1.0, 1.6, 2.2]
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16}
GEMMA4 = ["sliding_attention", "full_attention"] * 2
TEXT_MODEL = {"vocab": TEXT_VOCAB_SIZE, "context": 512, "embedding_scale": 0.35}
LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3_ROPE |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 128}
WIDE_HEADS = {"attention.key_length": 2 * HEAD_DIM, "attention.value_length": 2 * HEAD_DIM}
GEMMA3 = {"head_dim": 2 * HEAD_DIM, "query_pre_attn_scalar": 2 * HEAD_DIM, "sliding_window": WINDOW}
GEMMA3_KEYS = {**WIDE_HEADS, "attention.sliding_window": WINDOW, "rope.freq_base": 1e6, "rope.freq_base_swa": 1e4}
GLOBAL_ROPE = {"rope_theta": 1e6, "rope_type": "default"}
BERT_NAMES = {
    "position_embeddings": "position_embd",
    "token_type_embeddings": "token_types",
    "LayerNorm": "token_embd_norm",
    **{f"attention.self.{name}": f"attn_{name[0]}" for name in ("query", "key", "value")},
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
    "post_attention_layernorm": "attn_output_norm",
    "post_mlp_layernorm": "layer_output_norm",
    "dense": "pooler",
}
ENCODER = {"attention.causal": False, "attention.head_count_kv": None}


def without_pooler(config: Any, name: str, kind: str, x: F32) -> dict[str, F32]:
    """BERT's last layer, which hidden states do not go through."""
    return {} if name == "pooler" else {name: x}


RECIPES: dict[str, Recipe] = {
    "llama3": dense(
        "llama", "LlamaForCausalLM", "tied, scaled frequencies in rope_freqs",
        options={"rope_parameters": LLAMA3_ROPE}, keys={"rope.freq_base": 500000.0}, change=permuted, tied=True,
        **TEXT_MODEL,
    ),
    "qwen2": dense(
        "qwen2", "Qwen2ForCausalLM", "biases of q, k and v", options={"rope_parameters": GLOBAL_ROPE}, tied=True,
        **TEXT_MODEL,
    ),
    "qwen3": dense(
        "qwen3", "Qwen3ForCausalLM", "q and k norms, heads wider than hidden / heads", keys=WIDE_HEADS,
        options={"head_dim": 2 * HEAD_DIM, "rope_parameters": GLOBAL_ROPE}, tied=True, **TEXT_MODEL,
    ),
    "gemma3": dense(
        "gemma3", "Gemma3ForCausalLM", "five layers with a window of 16 to one whose rope is scaled by 8",
        options={**GEMMA3, "rope_parameters": {"sliding_attention": ROPE, "full_attention": {
            **GLOBAL_ROPE, "rope_type": "linear", "factor": 8.0}}},
        keys={**GEMMA3_KEYS, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
        names=SANDWICH, change=plus_one, tied=True, layers=7, intermediate=48, **TEXT_MODEL,
    ),
    "embedding-gemma": dense(
        "gemma-embedding", "Gemma3TextModel", "sees both ways; five layers with a window of 16 to one without",
        options={**GEMMA3, "use_bidirectional_attention": True,
                 "rope_parameters": {"sliding_attention": ROPE, "full_attention": GLOBAL_ROPE}},
        keys=GEMMA3_KEYS, names=SANDWICH, change=plus_one, tied=True, layers=6, intermediate=48,
    ),
    "bert": dense(
        "bert", "BertModel", "learned positions, norms behind each half of a block", options={"type_vocab_size": 2},
        keys=ENCODER, names=BERT_NAMES, change=without_pooler, tied=True, layer_norm=True, kv_heads=4,
        sizes={"num_key_value_heads": ""}, vocab=TEXT_VOCAB_SIZE,
    ),
    "nomic-bert": dense(
        "nomic-bert", "NomicBertModel", "rope, SwiGLU, norms behind each half of a block",
        options={"rope_parameters": {"rope_theta": 1000.0, "rope_type": "default"}, "head_dim": HEAD_DIM},
        keys=ENCODER, names={**BERT_NAMES, **FUSED_QKV}, tied=True, layer_norm=True, kv_heads=4,
        sizes={"num_key_value_heads": ""},
    ),
    "modernbert": dense(
        "modern-bert", "ModernBertModel", "every third layer sees all, the others 8 positions on either side; GeGLU",
        options={"local_attention": WINDOW, "global_attn_every_n_layers": 3, "cls_token_id": 1, "sep_token_id": 2,
                 "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 160000.0},
                                     "sliding_attention": ROPE}},
        keys={**ENCODER, "attention.sliding_window": WINDOW, "attention.sliding_window_pattern": 3,
              "rope.freq_base": 160000.0, "rope.freq_base_swa": 10000.0},
        names={"tok_embeddings": "token_embd", "norm": "token_embd_norm", "final_norm": "output_norm",
               "attn_norm": "attn_norm", "mlp_norm": "ffn_norm", "attn.Wo": "attn_output", "mlp.Wi": "ffn_up",
               "mlp.Wo": "ffn_down"},
        tied=True, layer_norm=True, kv_heads=4, layers=4, sizes={"num_key_value_heads": ""},
    ),
    "openelm": dense(
        "openelm", "OpenElm", "heads and feed-forward sizes of each layer's own, norms of the heads of q and k",
        options={"head_dim": HEAD_DIM, "layer_heads": [2, 4, 6], "layer_kv_heads": [1, 2, 2],
                 "layer_sizes": [32, 64, 96], "rms_norm_eps": 1e-6, "rope_theta": 10000.0},
        keys={**HEADS, "attention.head_count": [2, 4, 6], "attention.head_count_kv": [1, 2, 2],
              "feed_forward_length": [32, 64, 96], "rope.freq_base": 10000.0},
        names=FUSED_QKV, tied=True, layers=3,
    ),
    "gpt2": dense(
        "gpt2", "GPT2LMHeadModel", "learned positions, biases, tanh GELU, tied",
        tied=True, layer_norm=True, kv_heads=4, sizes=GPT2_SIZES,
    ),
    "gptneo": dense(
        "gptneo", "GPTNeoForCausalLM", "unscaled scores, layer 1 with a window of 16",
        options={"attention_types": [[["global", "local"], 1]], "window_size": WINDOW},
        keys={"attention.sliding_window": WINDOW}, tied=True, layer_norm=True, kv_heads=4,
        sizes={"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads", "num_key_value_heads": ""},
    ),
    "gptneox": dense(
        "gptneox", "GPTNeoXForCausalLM", "parallel residual, rotary on a quarter of each head, exact GELU",
        options={"rope_parameters": {**ROPE, "partial_rotary_factor": 0.25}},
        keys={"rope.dimension_count": 2, "use_parallel_residual": True},
        change=by_kind_not_head, layer_norm=True, kv_heads=4,
    ),
    "gptneox-sequential": dense(
        "gptneox", "GPTNeoXForCausalLM", "blocks one behind the other",
        options={"rope_parameters": {**ROPE, "partial_rotary_factor": 1.0}, "use_parallel_residual": False},
        keys={"use_parallel_residual": False}, change=by_kind_not_head, layer_norm=True, kv_heads=4,
    ),
    "falcon-7b": dense(
        "falcon", "FalconForCausalLM", "multi-query, one norm, exact GELU",
        options={"alibi": False, "new_decoder_architecture": False, "multi_query": True, "parallel_attn": True,
                 "bias": False, "ffn_hidden_size": INTERMEDIATE_SIZE},
        tied=True, layer_norm=True, kv_heads=1, sizes={"num_key_value_heads": "", "intermediate_size": ""},
    ),
    "falcon-40b": dense(
        "falcon", "FalconForCausalLM", "new decoder architecture: two norms, grouped queries",
        options={"alibi": False, "new_decoder_architecture": True, "bias": False, "num_kv_heads": 2,
                 "ffn_hidden_size": INTERMEDIATE_SIZE},
        names={"ln_attn": "attn_norm_2", "ln_mlp": "attn_norm"}, change=by_kind_not_head,
        layer_norm=True, sizes={"num_key_value_heads": "", "intermediate_size": ""},
    ),
    "starcoder": dense(
        "starcoder", "GPTBigCodeForCausalLM", "multi-query, learned positions",
        tied=True, layer_norm=True, kv_heads=1, sizes=GPT2_SIZES,
    ),
    "starcoder2": dense(
        "starcoder2", "Starcoder2ForCausalLM", "biases everywhere, grouped queries, window of 16",
        options={"sliding_window": WINDOW}, keys={"attention.sliding_window": WINDOW}, tied=True, layer_norm=True,
    ),
    "phi2": dense(
        "phi2", "PhiForCausalLM", "parallel block, rotary on half of each head, bias on the logits",
        options=PARTIAL, keys={"rope.dimension_count": HEAD_DIM // 2}, layer_norm=True, kv_heads=4,
    ),
    "stablelm": dense(
        "stablelm", "StableLmForCausalLM", "as the 1.6B: biases on q, k, v",
        options={**PARTIAL, "use_qkv_bias": True}, keys={"rope.dimension_count": HEAD_DIM // 2}, layer_norm=True,
    ),
    "stablelm-12b": dense(
        "stablelm", "StableLmForCausalLM", "parallel block, a norm for each head of q and k",
        options={**PARTIAL, "use_parallel_residual": True, "qk_layernorm": True},
        keys={"rope.dimension_count": HEAD_DIM // 2}, layer_norm=True,
    ),
    "nemotron": dense(
        "nemotron", "NemotronForCausalLM", "norms plus one, squared ReLU",
        options={**PARTIAL, "head_dim": HEAD_DIM}, keys={"rope.dimension_count": HEAD_DIM // 2},
        change=plus_one, layer_norm=True,
    ),
    "persimmon": dense(
        "persimmon", "PersimmonForCausalLM", "norms of q and k, rows of qkv by heads", options=PARTIAL,
        keys={"rope.dimension_count": HEAD_DIM // 2}, layer_norm=True, kv_heads=4, sizes={"num_key_value_heads": ""},
    ),
    "bloom": dense(
        "bloom", "BloomForCausalLM", "ALiBi, norm behind the embedding", change=by_kind_not_head, tied=True,
        layer_norm=True, kv_heads=4, sizes=BLOOM_SIZES, intermediate=4 * HIDDEN_SIZE,
    ),
    "mpt": dense(
        "mpt", "MptForCausalLM", "ALiBi, q, k and v clamped to 0.5", options={"attn_config": {"clip_qkv": 0.5}},
        keys={"attention.max_alibi_bias": 8.0, "attention.clamp_kqv": 0.5}, tied=True, layer_norm=True, kv_heads=4,
        sizes=MPT_SIZES, intermediate=4 * HIDDEN_SIZE,
    ),
    "gemma": dense(
        "gemma", "GemmaForCausalLM", "one head of keys and values, heads wider than hidden / heads",
        options={"head_dim": HEAD_DIM, "hidden_activation": "gelu_pytorch_tanh"}, keys=HEADS,
        change=plus_one, tied=True, kv_heads=1,
    ),
    "gemma2": dense(
        "gemma2", "Gemma2ForCausalLM", "caps 5 and 4, every other layer with a window of 16",
        options={"head_dim": HEAD_DIM, "query_pre_attn_scalar": HEAD_DIM, "sliding_window": WINDOW,
                 "attn_logit_softcapping": 5.0, "final_logit_softcapping": 4.0},
        keys={**HEADS, "attention.sliding_window": WINDOW, "attn_logit_softcapping": 5.0,
              "final_logit_softcapping": 4.0},
        names=SANDWICH, change=plus_one, tied=True,
    ),
    "granite": dense(
        "granite", "GraniteForCausalLM", "four multipliers",
        options={"embedding_multiplier": 3.0, "attention_multiplier": 0.1, "residual_multiplier": 0.4,
                 "logits_scaling": 0.5},
        keys={"embedding_scale": 3.0, "attention.scale": 0.1, "residual_scale": 0.4, "logit_scale": 0.5},
        change=permuted, tied=True,
    ),
    "smollm3": dense(
        "smollm3", "SmolLM3ForCausalLM", "every fourth layer knows no positions", change=permuted, tied=True, layers=5,
    ),
    "command-r": dense(
        "command-r", "CohereForCausalLM", "parallel block, norm without bias, scaled logits",
        options={"logit_scale": 0.25}, keys={"logit_scale": 0.25}, tied=True, layer_norm=True,
    ),
    "command-r-plus": dense(
        "command-r", "CohereForCausalLM", "a norm for each head of q and k",
        options={"logit_scale": 0.25, "use_qk_norm": True}, keys={"logit_scale": 0.25}, tied=True, layer_norm=True,
    ),
    "cohere2": dense(
        "cohere2", "Cohere2ForCausalLM", "three layers with a window of 16 to one without positions",
        options={"logit_scale": 0.25, "sliding_window": WINDOW}, tied=True, layer_norm=True, layers=4,
        keys={"logit_scale": 0.25, "attention.sliding_window": WINDOW},
    ),
    "olmo": dense(
        "olmo", "OlmoForCausalLM", "norms without weights, q, k and v clamped to 0.5", options={"clip_qkv": 0.5},
        keys={"attention.clamp_kqv": 0.5}, change=permuted, layer_norm=True,
    ),
    "olmo2": dense(
        "olmo2", "Olmo2ForCausalLM", "norms behind the blocks, of q and k over all heads", names=SANDWICH,
    ),
    "olmo3": dense(
        "olmo2", "Olmo3ForCausalLM", "three layers with a window of 16 to one whose rope is scaled by yarn",
        options={"sliding_window": WINDOW, "rope_parameters": {"sliding_attention": ROPE, "full_attention": {
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32,
            "attention_factor": 1.2, "beta_fast": 32.0, "beta_slow": 1.0}}},
        keys={"attention.sliding_window": WINDOW, "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
              "rope.scaling.original_context_length": 32,
              "rope.scaling.attn_factor": 1.2 / (0.1 * float(np.log(4.0)) + 1.0)},
        names=SANDWICH, layers=4,
    ),
    "glm4": dense(
        "glm4", "Glm4ForCausalLM", "norms before and after each block, rotary on half of each head, neighbours",
        options={**PARTIAL, "head_dim": HEAD_DIM}, keys={"rope.dimension_count": HEAD_DIM // 2},
        names={"post_self_attn_layernorm": "post_attention_norm", "post_mlp_layernorm": "post_ffw_norm",
               "mlp.gate_up_proj": "ffn_up"},
    ),
    "chatglm": dense(
        "chatglm", "GlmForCausalLM", "one matrix for q, k and v, one for gate and up",
        options={**PARTIAL, "head_dim": HEAD_DIM}, keys={"rope.dimension_count": HEAD_DIM // 2},
        names={**FUSED_QKV, "mlp.gate_up_proj": "ffn_up"},
    ),
    "exaone": dense("exaone", "LlamaForCausalLM", "computes what EXAONE 3.5 does"),
    "exaone4": dense(
        "exaone4", "Exaone4ForCausalLM", "as the 32B: three layers with a window of 16 to one without positions",
        options={"head_dim": HEAD_DIM, "sliding_window": WINDOW, "sliding_window_pattern": 4, "rope_parameters": ROPE},
        keys={"attention.sliding_window": WINDOW, "attention.sliding_window_pattern": [True, True, True, False]},
        names=SANDWICH, layers=4,
    ),
    "exaone4-1.2b": dense(
        "exaone4", "Exaone4ForCausalLM", "no window, positions everywhere",
        options={"head_dim": HEAD_DIM, "sliding_window": None, "rope_parameters": ROPE,
                 "layer_types": ["full_attention"] * 2},
        names=SANDWICH, tied=True,
    ),
    "hunyuan": dense(
        "hunyuan-dense", "HunYuanDenseV1ForCausalLM", "norms of q and k behind the rotary positions",
        options={"head_dim": HEAD_DIM}, keys=HEADS, tied=True,
        names={"self_attn.query_layernorm": "attn_q_norm", "self_attn.key_layernorm": "attn_k_norm"},
    ),
    "seed-oss": dense(
        "seed_oss", "SeedOssForCausalLM", "biases of q, k and v", options={"head_dim": HEAD_DIM}, keys=HEADS,
        names={"post_attention_layernorm": "post_attention_norm"},
    ),
    "ernie": dense(
        "ernie4_5", "Ernie4_5ForCausalLM", "rotary on neighbours",
        options={"head_dim": HEAD_DIM}, keys=HEADS, tied=True,
    ),
    "arcee": dense("arcee", "ArceeForCausalLM", "squared ReLU", change=permuted),
    "internlm2": dense("internlm2", "LlamaForCausalLM", "computes what InternLM 2 and XVERSE do", change=permuted),
    "baichuan": dense(
        "baichuan", "LlamaForCausalLM", "computes what the 7B does", change=permuted, kv_heads=4,
    ),
    "qwen": dense(
        "qwen", "Qwen2ForCausalLM", "computes what Qwen 1 does", kv_heads=4, names=FUSED_QKV,
        keys={"feed_forward_length": 2 * INTERMEDIATE_SIZE},
    ),
    "orion": dense(
        "orion", "StableLmForCausalLM", "computes what Orion does", layer_norm=True,
        options={"rope_parameters": {**ROPE, "partial_rotary_factor": 1.0}},
    ),
    "codeshell": dense(
        "codeshell", "Starcoder2ForCausalLM", "computes what CodeShell does", options={"sliding_window": None},
        names=FUSED_QKV, layer_norm=True,
    ),
    "minicpm": dense(
        "minicpm", "GraniteForCausalLM", "computes what MiniCPM 2B does, whose multipliers are not in the file",
        options={"embedding_multiplier": 12.0, "attention_multiplier": HEAD_DIM**-0.5,
                 "residual_multiplier": 1.4 / 2**0.5, "logits_scaling": HIDDEN_SIZE / 256},
        change=permuted, tied=True,
    ),
    "phi3-small": dense(
        "phi3", "Phi3ForCausalLM", "longrope over 32 positions, three quarters of each head turn, window of 24",
        options={"original_max_position_embeddings": 32, "sliding_window": 24, "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": SHORT, "long_factor": LONG,
            "partial_rotary_factor": 0.75}},
        keys={"rope.dimension_count": 6, "rope.scaling.original_context_length": 32, "attention.sliding_window": 24,
              "rope.scaling.attn_factor": float(np.sqrt(1 + np.log(CONTEXT / 32) / np.log(32)))},
        names={"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"}, tied=True,
        tensors={"rope_factors_short.weight": SHORT, "rope_factors_long.weight": LONG},
    ),
    "ministral3": dense(
        "mistral3", "Ministral3ForCausalLM", "yarn without magnitude; the temperature changes every 16 positions",
        options={"head_dim": HEAD_DIM, "rope_parameters": {
            **YARN, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.3}},
        keys={**HEADS, "rope.scaling.type": "yarn", "rope.scaling.factor": 16.0, "attention.temperature_scale": 0.3,
              "rope.scaling.original_context_length": 16, "rope.scaling.yarn_log_multiplier": 1.0},
        change=permuted,
    ),
    "gemma4-small": dense(
        "gemma4", "Gemma4ForCausalLM", "shared K/V, global layers with v = k and one K/V head, per-layer embeddings",
        options={
            "vocab_size_per_layer_input": VOCAB_SIZE, "num_global_key_value_heads": 1, "head_dim": HEAD_DIM,
            "global_head_dim": 2 * HEAD_DIM, "layer_types": GEMMA4, "sliding_window": WINDOW,
            "rope_parameters": {"sliding_attention": ROPE, "full_attention": {
                "rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25}},
            "final_logit_softcapping": 6.0, "hidden_size_per_layer_input": 32, "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True, "attention_k_eq_v": True, "enable_moe_block": False,
        },
        keys={
            "attention.head_count_kv": [2, 1, 2, 1],
            "feed_forward_length": [INTERMEDIATE_SIZE] * 2 + [2 * INTERMEDIATE_SIZE] * 2,
            "attention.key_length": 2 * HEAD_DIM, "attention.value_length": 2 * HEAD_DIM,
            "attention.key_length_swa": HEAD_DIM, "attention.value_length_swa": HEAD_DIM,
            "attention.shared_kv_layers": 2, "attention.sliding_window": WINDOW,
            "attention.sliding_window_pattern": [kind == "sliding_attention" for kind in GEMMA4],
            "embedding_length_per_layer_input": 32, "final_logit_softcapping": 6.0, "rope.freq_base": 1e6,
            "rope.freq_base_swa": 10000.0, "rope.dimension_count": 2 * HEAD_DIM, "rope.dimension_count_swa": HEAD_DIM,
        },
        names={
            **SANDWICH, "post_per_layer_input_norm": "post_norm", "per_layer_input_gate": "inp_gate",
            "per_layer_projection": "proj", "embed_tokens_per_layer": "per_layer_token_embd",
            "per_layer_model_projection": "per_layer_model_proj", "per_layer_projection_norm": "per_layer_proj_norm",
        },
        tied=True, layers=4,
        tensors={"rope_freqs.weight": [1.0] * 2 + [1e30] * 6},  # a quarter of a global head's 8 pairs turn
    ),
}
