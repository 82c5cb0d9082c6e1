"""The recipe of tools/make_oracle.py for T5, whose tensors have an encoder's and a decoder's side."""

from __future__ import annotations

from oracle_recipes import HIDDEN_SIZE, Recipe

T5_SIZES = {
    "hidden_size": "d_model",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "",
    "intermediate_size": "d_ff",
    "max_position_embeddings": "",
}
T5_MODULES = {"SelfAttention.": "attn_", "EncDecAttention.": "cross_attn_", "DenseReluDense.": ""}


def t5_name(name: str) -> str:
    """encoder.block.0.layer.0.SelfAttention.q.weight -> enc.blk.0.attn_q.weight"""
    if name == "shared.weight":
        return "token_embd.weight"
    side, rest = name.split(".", 1)
    side = side[:3]
    if rest == "final_layer_norm.weight":
        return f"{side}.output_norm.weight"
    _, block, _, layer, module = rest.split(".", 4)
    if module == "layer_norm.weight":
        norms = ["attn", "ffn"] if side == "enc" else ["attn", "cross_attn", "ffn"]
        return f"{side}.blk.{block}.{norms[int(layer)]}_norm.weight"
    for old, new in {**T5_MODULES, "relative_attention_bias": "rel_b", "wi": "ffn_up", "wo": "ffn_down"}.items():
        module = module.replace(old, new)
    return f"{side}.blk.{block}.{module}"


T5_RECIPES = {
    "t5-relu": Recipe(
        "t5", "T5ForConditionalGeneration", "the first T5: ReLU without a gate, a tied head over scaled rows",
        options={"d_kv": 4, "num_decoder_layers": 1, "feed_forward_proj": "relu", "decoder_start_token_id": 0},
        keys={"decoder_block_count": 1, "decoder_start_token_id": 0, "attention.relative_buckets_count": 32,
              "attention.head_count_kv": None, "attention.key_length": 4, "attention.value_length": 4},
        tied=True, layers=1, sizes=T5_SIZES, intermediate=HIDDEN_SIZE, tensor_name=t5_name,
    ),
}  # fmt: skip
