"""Tiny random models with the logits, or hidden states, of transformers: the reference models of tests/data/oracle.

    python tools/make_oracle.py --list
    python tools/make_oracle.py FOLDER NAME...        # FOLDER/NAME/{model.gguf, reference.npz, meta.json}
    sterna diff FOLDER/NAME/model.gguf --against FOLDER/NAME/reference.npz

Needs torch and transformers (the versions are in meta.json). `oracle_recipes.py` has one recipe per name. Sequences of
1, 17 and 70 tokens; windows are 16 positions, so that they bite. Everything is float32.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from oracle_recipes import NAMES, TEXT_VOCAB_SIZE, Recipe
from oracle_recipes import RECIPES as DENSE_RECIPES
from oracle_recipes_moe import MOE_RECIPES
from oracle_recurrent import RECURRENT
from oracle_t5 import T5_RECIPES

RECIPES = DENSE_RECIPES | MOE_RECIPES | RECURRENT | T5_RECIPES
SEED = 20261121
LENGTHS = (1, 17, 70)
F32 = npt.NDArray[np.float32]


def all_weights(model: Any) -> list[tuple[str, Any]]:
    """Parameters, and buffers that are learned otherwise."""
    buffers = [(name, buffer) for name, buffer in model.named_buffers() if name.endswith("correction_bias")]
    return [*model.named_parameters(), *buffers]


def random_weights(recipe: Recipe, model: Any, rng: np.random.Generator) -> None:
    """Matrices that keep the size of what goes through them, norms near their neutral value, biases of a tenth."""
    import torch

    for name, weight in all_weights(model):
        values = rng.standard_normal(tuple(weight.shape))
        if weight.dim() == 1 or "norm" in name:
            neutral = 0.0 if name.endswith("bias") else float(weight.data.reshape(-1)[0])
            values = neutral + 0.1 * values
        elif "embed" not in name and "wte" not in name and "wpe" not in name:
            transposed = type(model.get_submodule(name.rsplit(".", 1)[0])).__name__ == "Conv1D"
            values /= np.sqrt(weight.shape[0 if transposed else 1])
        else:
            values *= recipe.embedding_scale
        weight.data = torch.tensor(values, dtype=torch.float32)
    model.tie_weights()


def tensors(recipe: Recipe, model: Any) -> dict[str, F32]:
    """The tensors of the file by GGUF name: every parameter of the model once."""
    modules = dict(model.named_modules())
    found: dict[str, F32] = {}
    parameters = dict(all_weights(model))
    if not recipe.tied and "lm_head.weight" not in parameters:
        parameters["lm_head.weight"] = model.lm_head.weight
    for name, weight in parameters.items():
        values: F32 = weight.detach().numpy()
        if recipe.tensor_name:
            found[recipe.tensor_name(name)] = values
            continue
        module, kind = name.rsplit(".", 1)
        if kind not in ("weight", "bias"):  # a tensor of a module that has several
            module, kind = name, "bias" if kind.endswith("bias") else "weight"
        if type(modules.get(module)).__name__ == "Conv1D" and kind == "weight":
            values = np.ascontiguousarray(values.T)
        layer = re.search(r"(?:^|\.)(?:layers|layer|h|blocks)\.(\d+)\.", module)
        short = module[layer.end() :] if layer else module.rsplit(".", 1)[-1]
        prefix = f"blk.{layer[1]}." if layer else ""
        target = {**NAMES, **recipe.names}.get(short)
        if target is None:
            sys.exit(f"{recipe.architecture}: no name for {name}")
        if ".norms." in module:  # one norm for each head: [num_heads, head_dim]
            values = values[None]
        for part, data in recipe.change(model.config, target, kind, values).items():
            full = f"{prefix}{part}" if part in ("ssm_a", "ssm_d") else f"{prefix}{part}.{kind}"
            found[full] = np.concatenate([found[full], data]) if full in found else data
    if (getattr(model.config, "rope_parameters", None) or {}).get("rope_type") == "llama3":
        scaled = model.model.rotary_emb.inv_freq.numpy()
        plain = model.config.rope_parameters["rope_theta"] ** -(np.arange(len(scaled)) / len(scaled))
        found["rope_freqs.weight"] = (plain / scaled).astype(np.float32)
    return found | {name: np.asarray(values, np.float32) for name, values in recipe.tensors.items()}


def add_tokenizer(writer: gguf.GGUFWriter, vocab: int) -> None:
    """One with bytes and syllables, or, of a small vocabulary, one that no test uses."""
    tokens, types = ["<unk>", "<s>", "</s>"], [2, 3, 3]
    if vocab == TEXT_VOCAB_SIZE:
        tokens += [f"<0x{byte:02X}>" for byte in range(256)]
        types += [6] * 256
        letters = "abcdefghijklmnopqrstuvwxyz"
        tokens += [f"{'' if i % 2 else '▁'}{letters[i % 26]}{letters[i // 26]}" for i in range(vocab - len(tokens))]
    else:
        tokens += [f"<{i}>" for i in range(3, vocab)]
    types += [1] * (vocab - len(types))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    first = types.index(1)
    writer.add_token_scores([float(-max(i - first + 1, 0)) if first > 3 else 0.0 for i in range(vocab)])
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if vocab == TEXT_VOCAB_SIZE:
        writer.add_unk_token_id(0)
        writer.add_add_bos_token(False)
        writer.add_add_space_prefix(False)


def write_model(path: Path, recipe: Recipe, model: Any) -> None:
    """The GGUF file."""
    writer = gguf.GGUFWriter(path, recipe.architecture)
    writer.add_name(f"oracle-{path.parent.name}")
    for key, value in recipe.metadata(model.config).items():
        full = f"{recipe.architecture}.{key}"
        if isinstance(value, bool):
            writer.add_bool(full, value)
        elif isinstance(value, int):
            writer.add_uint32(full, value)
        elif isinstance(value, float):
            writer.add_float32(full, value)
        elif isinstance(value, str):
            writer.add_string(full, value)
        else:
            writer.add_array(full, value)
    add_tokenizer(writer, recipe.vocab)
    for name, data in tensors(recipe, model).items():
        writer.add_tensor(name, np.ascontiguousarray(data, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make(folder: Path, name: str) -> None:
    """Writes one reference model."""
    import torch
    import transformers

    recipe = RECIPES[name]
    torch.manual_seed(SEED)
    rng = np.random.default_rng([SEED, *name.encode()])
    config = recipe.config()
    config._attn_implementation = "eager"
    model = recipe.model_class()(config).eval().float()
    random_weights(recipe, model, rng)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for i, length in enumerate(LENGTHS):
        tokens = rng.integers(3, recipe.vocab, length)
        ids = torch.tensor(tokens)[None]
        with torch.no_grad():
            if getattr(config, "is_encoder_decoder", False):  # the first token of a decoder is 0
                decoder_tokens = np.append(0, rng.integers(3, recipe.vocab, length // 3))
                output = model(input_ids=ids, decoder_input_ids=torch.tensor(decoder_tokens)[None], use_cache=False)
                kind, values = "logits", output.logits[0]
                encoded = output.encoder_last_hidden_state[0].numpy()
                arrays |= {f"decoder_tokens_{i}": decoder_tokens.astype(np.int32), f"encoder_{i}": encoded}
            elif isinstance(model, transformers.PreTrainedModel) and hasattr(model, "lm_head"):
                result = model(input_ids=ids, use_cache=False, output_hidden_states=True)
                kind, values = "logits", result.logits[0]
                states = torch.stack(result.hidden_states[:-1])[:, 0]  # what each layer reads
                arrays[f"states_{i}"] = states.numpy().astype(np.float32)
            elif hasattr(model, "lm_head"):
                kind, values = "logits", model(input_ids=ids, use_cache=False).logits[0]
            else:
                kind, values = "hidden", model(input_ids=ids).last_hidden_state[0]
        arrays |= {f"tokens_{i}": tokens.astype(np.int32), f"{kind}_{i}": values.numpy().astype(np.float32)}
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    write_model(target / "model.gguf", recipe, model)
    np.savez_compressed(target / "reference.npz", **arrays)
    meta = {
        "name": name,
        "hf_class": recipe.hf_class,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "seed": SEED,
        "notes": recipe.notes,
        "config": config.to_diff_dict(),
    }
    (target / "meta.json").write_text(json.dumps(meta, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("names", nargs="*", help="default: all")
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(RECIPES)
    if unknown:
        parser.error(f"no recipe for {', '.join(sorted(unknown))}")
    if arguments.list or arguments.folder is None:
        print("\n".join(f"{name}: {recipe.hf_class}, {recipe.notes}" for name, recipe in RECIPES.items()))
        return
    for name in arguments.names or RECIPES:
        make(arguments.folder, name)
        size = sum(file.stat().st_size for file in (arguments.folder / name).iterdir())
        print(f"{name}: {size // 1000} kB", flush=True)


if __name__ == "__main__":
    main()
