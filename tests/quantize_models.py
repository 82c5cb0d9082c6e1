"""Small GGUF files to quantise: shapes of models without their weights, for which llama.cpp's choice of formats is known.

tools/make_quantize_reference.py has llama.cpp quantise the same files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Case:
    """The shape of a model; `width` also that of the feed-forward."""

    architecture: str = "llama"
    layers: int = 16
    width: int = 256
    heads: int = 8
    kv_heads: int = 8
    experts: int = 0
    tied: bool = False
    fused: bool = False  # query, key and value in one matrix
    importance: bool = False


CASES = {
    "tied": Case(tied=True, layers=30),
    "shared keys": Case(kv_heads=2),
    "importance": Case(importance=True),
    "eight experts": Case(kv_heads=2, experts=8, layers=17),
    "four experts": Case(experts=4, layers=11),
    "fused": Case(fused=True, architecture="phi3", layers=9),
    "70b": Case(layers=80, kv_heads=1),
    "narrow": Case(width=288, heads=9, kv_heads=3),
    "odd": Case(width=48, heads=3, kv_heads=3, tied=True, layers=2),
}
VOCABULARY = 4


def tensors_of(case: Case) -> dict[str, tuple[int, ...]]:
    """Shapes by name, rows first. Matrices have few rows: only names and widths matter."""
    k, rows = case.width, 2
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCABULARY, k), "output_norm.weight": (k,)}
    if not case.tied:
        shapes["output.weight"] = (VOCABULARY, k)
    attention = ["attn_qkv"] if case.fused else ["attn_q", "attn_k", "attn_v"]
    for i in range(case.layers):
        of_layer: dict[str, tuple[int, ...]] = {"attn_norm": (k,), "ffn_norm": (k,)}
        of_layer |= dict.fromkeys([*attention, "attn_output"], (rows, k))
        if case.experts:
            of_layer["ffn_gate_inp"] = (case.experts, k)
            of_layer |= {f"ffn_{name}_exps": (case.experts, rows, k) for name in ("gate", "up", "down")}
        else:
            of_layer |= {f"ffn_{name}": (rows, k) for name in ("gate", "up", "down")}
        shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in of_layer.items()}
    return shapes


def write_case(path: Path, case: Case, weights: npt.NDArray[np.float32] | None = None) -> None:
    """The model as a file of F32; weights are those given, over and over, or zeros."""
    writer = gguf.GGUFWriter(path, case.architecture)
    writer.add_block_count(case.layers)
    writer.add_context_length(32)
    writer.add_embedding_length(case.width)
    writer.add_feed_forward_length(case.width)
    writer.add_head_count(case.heads)
    writer.add_head_count_kv(case.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(case.width // case.heads)
    if case.experts:
        writer.add_expert_count(case.experts)
        writer.add_expert_used_count(2)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(VOCABULARY)
    for name, shape in tensors_of(case).items():
        data = np.zeros(shape, np.float32) if weights is None else np.resize(weights, shape)
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
