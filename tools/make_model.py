"""Writes GGUF models of real shapes with random weights, for benchmarks where no real model can be had.

    python tools/make_model.py --shape 1b --format Q4_0 -o 1b-Q4_0.gguf [--head F16] [--layers N] [--seed N]

Speed depends on shapes and formats, not on what the weights say: sterna and llama.cpp load these files as they do real
ones. Codes are random, and valid in their format. Activations keep their size through all layers, and tokens their
difference (a mixture of experts sends them to different ones): the embedding has variance 1, the layers add another.
Which tensor has which format follows llama.cpp's quantiser (src/llama-quant.cpp, llama_tensor_get_type_impl).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
CHUNK_BYTES = 16 << 20


@dataclass(frozen=True)
class Shape:
    """The extents of a decoder."""

    architecture: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    rope_theta: float = 500000.0
    experts: int = 0
    experts_used: int = 0


SHAPES = {
    # Llama-3.2-1B
    "1b": Shape("llama", 16, 2048, 8192, 32, 8, 64, 128256, tied=True),
    # BitNet-b1.58-2B-4T; llama.cpp knows the architecture as "bitnet" only, with SiLU for the squared ReLU.
    "2b-bitnet": Shape("bitnet", 30, 2560, 6912, 20, 5, 128, 128256, tied=True),
    # Llama-3-8B
    "8b": Shape("llama", 32, 4096, 14336, 32, 8, 128, 128256, tied=False),
    # As Mixtral is built, at a size for two cores.
    "moe": Shape("llama", 16, 2048, 4096, 32, 8, 64, 128256, tied=False, experts=8, experts_used=2),
}

# By format of the file: what most matrices have, and general.file_type (llama.h, enum llama_ftype).
FILE_FORMATS = {
    "F16": ("F16", 1),
    "Q4_0": ("Q4_0", 2),
    "Q8_0": ("Q8_0", 7),
    "Q4_K": ("Q4_K", 14),  # Q4_K_S without the exceptions of that name
    "Q4_K_M": ("Q4_K", 15),
    "TQ1_0": ("TQ1_0", 36),
    "TQ2_0": ("TQ2_0", 37),
    "I2_S": ("I2_S", 40),  # bitnet.cpp's llama.h
    "Q1_0": ("Q1_0", 40),
    "Q2_0": ("Q2_0", 41),
}

# What the gguf package does not know of formats: the tensor type, the weights of a block, its bytes. I2_S has its scale
# behind the codes of a whole tensor.
NEW_FORMATS = {"I2_S": (36, 128, 32), "Q1_0": (41, 128, 18), "Q2_0": (42, 64, 18)}
I2_S_TAIL_BYTES = 32


def block_of(file_format: str) -> tuple[int, int, int]:
    """The tensor type of a quantised format, the weights of a block, and its bytes."""
    if file_format in NEW_FORMATS:
        return NEW_FORMATS[file_format]
    kind = gguf.GGMLQuantizationType[file_format]
    return int(kind), *gguf.GGML_QUANT_SIZES[kind]


@dataclass(frozen=True)
class Tensor:
    """One tensor to write; `shape` has the rows first."""

    name: str
    shape: tuple[int, ...]
    format: str
    deviation: float  # of the weights; 0: ones, more or less
    one_scale: bool = False  # the same scale for all blocks, as BitNet's matrices have it


def more_bits(layer: int, layers: int) -> bool:
    """The layers in which a Q4_K_M file spends Q6_K: the first and last eighth, and every third between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def tensors(shape: Shape, file_format: str, head: str | None = None) -> Iterator[Tensor]:
    """All tensors of a model; `head` replaces the format of the output matrix, or of the table that serves as it."""
    usual = FILE_FORMATS[file_format][0]
    ternary = usual.startswith("TQ") or usual in NEW_FORMATS
    plain = usual in ("F16", "Q8_0")
    output = head or (usual if plain else "Q6_K")
    one_scale = shape.architecture == "bitnet"
    vocabulary = (shape.vocab, shape.hidden)
    yield Tensor("token_embd", vocabulary, output if shape.tied else "Q4_K" if ternary else usual, 1.0)
    if not shape.tied:
        yield Tensor("output", vocabulary, output, shape.hidden**-0.5)
    yield Tensor("output_norm", (shape.hidden,), "F32", 0.0)

    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    mixed = file_format == "Q4_K_M"
    for layer in range(shape.layers):
        better = "Q6_K" if mixed and more_bits(layer, shape.layers) else usual
        many = mixed and shape.experts == 8
        rows = {
            "attn_q": ((q, shape.hidden), usual),
            "attn_k": ((kv, shape.hidden), "Q8_0" if many else usual),
            "attn_v": ((kv, shape.hidden), "Q8_0" if many else better),
            "attn_output": ((shape.hidden, q), "Q5_K" if many else usual),
        }
        suffix, stack = ("_exps", (shape.experts,)) if shape.experts else ("", ())
        feed_forward: dict[str, tuple[tuple[int, ...], str]] = {
            f"ffn_gate{suffix}": ((*stack, shape.intermediate, shape.hidden), usual),
            f"ffn_up{suffix}": ((*stack, shape.intermediate, shape.hidden), usual),
            f"ffn_down{suffix}": ((*stack, shape.hidden, shape.intermediate), better),
        }
        if shape.experts:
            feed_forward["ffn_gate_inp"] = ((shape.experts, shape.hidden), "F32")
        for name, (extents, matrix_format) in {**rows, **feed_forward}.items():
            deviation = extents[-1] ** -0.5
            if name.startswith(("attn_output", "ffn_down")):
                deviation /= (2 * shape.layers) ** 0.5
            yield Tensor(f"blk.{layer}.{name}", extents, matrix_format, deviation, one_scale)
        norms = {"attn_norm": shape.hidden, "ffn_norm": shape.hidden}
        if shape.architecture == "bitnet":
            norms |= {"attn_sub_norm": q, "ffn_sub_norm": shape.intermediate}
        for name, extent in norms.items():
            yield Tensor(f"blk.{layer}.{name}", (extent,), "F32", 0.0)


# --- blocks of random codes: the layouts are those of ggml-common.h ---


def _put_f16(blocks: Bytes, at: int, values: npt.NDArray[Any]) -> None:
    blocks[:, at : at + 2] = values.astype(np.float16).view(np.uint8).reshape(-1, 2)


def _fill_q4_0(blocks: Bytes, scales: npt.NDArray[Any]) -> None:
    """f16 scale, 16 bytes of two codes 0..15, meaning -8..7. Scales of both signs, so that the codes' mean of -0.5 does
    not add up over the blocks; the quantiser makes such scales too."""
    signs = np.where(blocks[:, 0] & 1, 1.0, -1.0)
    _put_f16(blocks, 0, signs * scales / 4.6)


def _fill_q8_0(blocks: Bytes, scales: npt.NDArray[Any]) -> None:
    """f16 scale, 32 codes; the quantiser leaves -128 out."""
    codes = blocks[:, 2:].view(np.int8)
    np.maximum(codes, -127, out=codes)
    _put_f16(blocks, 0, scales / 73.6)


def _fill_k(blocks: Bytes, scales: npt.NDArray[Any], middle: float, deviation: float) -> None:
    """f16 scale and scale of minimums, 12 bytes of 6-bit scales and minimums, codes. The sub-scales get their top bit,
    so that they lie in 32..63; the minimums, as well there, put zero into the middle of the codes."""
    blocks[:, 4:12] |= 0xA0
    _put_f16(blocks, 0, scales / deviation)
    _put_f16(blocks, 2, scales / deviation * middle)


def _fill_q6_k(blocks: Bytes, scales: npt.NDArray[Any]) -> None:
    """128 bytes of low and 64 of high bits, 16 sub-scales of 8 bits, f16 scale. Sub-scales: 16..31, -32..-17."""
    sub = blocks[:, 192:208]
    sub[:] = (sub & 0x0F) | np.where(sub & 0x80, np.uint8(0xE0), np.uint8(0x10))
    _put_f16(blocks, 208, scales / 448.0)


def _ternary_bytes(digits: int, pack: Callable[[list[int]], int]) -> Bytes:
    """A table that makes a byte of ternary digits of a random byte. Each digit's mean is that of a weight of zero: a
    bias, however small, adds up along the columns, and the layers would make all tokens the same."""
    combinations = [[value // 3**i % 3 for i in range(digits)] for value in range(3**5)]
    combinations += [[value % 3] * digits for value in range(12)] + [[1] * digits]
    return np.array([pack(combination) for combination in combinations], np.uint8)


def _base3(digits: list[int]) -> int:
    """The digits, the first one highest, as a fraction of 3**5 in 8 bits, rounded up."""
    value = 0
    for i in range(5):
        value = 3 * value + (digits[i] if i < len(digits) else 0)
    return (value * 256 + 242) // 243


_FOUR_CRUMBS = _ternary_bytes(4, lambda digits: sum(digit << 2 * i for i, digit in enumerate(digits)))
_FIVE_TRITS = _ternary_bytes(5, _base3)
_FOUR_TRITS = _ternary_bytes(4, _base3)


def _fill_tq2_0(blocks: Bytes, scales: npt.NDArray[Any]) -> None:
    """64 bytes of four codes 0..2, f16 scale."""
    blocks[:, :64] = _FOUR_CRUMBS[blocks[:, :64]]
    _put_f16(blocks, 64, scales / 0.816)


def _fill_tq1_0(blocks: Bytes, scales: npt.NDArray[Any]) -> None:
    """48 bytes of five ternary digits, 4 bytes of four, f16 scale."""
    blocks[:, :48] = _FIVE_TRITS[blocks[:, :48]]
    blocks[:, 48:52] = _FOUR_TRITS[blocks[:, 48:52]]
    _put_f16(blocks, 52, scales / 0.816)


def _fill_i2_s(blocks: Bytes, scales: npt.NDArray[Any]) -> None:
    """32 bytes of four codes 0..2."""
    blocks[:] = _FOUR_CRUMBS[blocks]


def _fill_q1_0(blocks: Bytes, scales: npt.NDArray[Any]) -> None:
    """f16 scale, 16 bytes of eight signs."""
    _put_f16(blocks, 0, scales)


def _fill_q2_0(blocks: Bytes, scales: npt.NDArray[Any]) -> None:
    """f16 scale, 16 bytes of four codes 0..2; a fourth one is possible."""
    blocks[:, 2:] = _FOUR_CRUMBS[blocks[:, 2:]]
    _put_f16(blocks, 0, scales / 0.816)


# fill(blocks, scales) makes random bytes [num_blocks, block_bytes] valid; the weights' standard deviation is `scales`.
_FILL: dict[str, Callable[[Bytes, npt.NDArray[Any]], None]] = {
    "Q4_0": _fill_q4_0,
    "Q8_0": _fill_q8_0,
    "Q4_K": lambda blocks, scales: _fill_k(blocks, scales, 7.5, 240.0),
    "Q5_K": lambda blocks, scales: _fill_k(blocks, scales, 15.5, 480.0),
    "Q6_K": _fill_q6_k,
    "TQ1_0": _fill_tq1_0,
    "TQ2_0": _fill_tq2_0,
    "I2_S": _fill_i2_s,
    "Q1_0": _fill_q1_0,
    "Q2_0": _fill_q2_0,
}


def chunks(tensor: Tensor, rng: np.random.Generator) -> Iterator[npt.NDArray[Any]]:
    """The bytes of a tensor, some megabytes at a time."""
    count = int(np.prod(tensor.shape))
    if tensor.deviation == 0.0:
        yield rng.uniform(0.8, 1.2, count).astype(np.float32)
        return
    _, block, block_bytes = block_of(tensor.format)
    if tensor.shape[-1] % block:
        raise ValueError(f"{tensor.name}: rows of {tensor.shape[-1]} are no multiple of {block} ({tensor.format})")
    blocks_left = count // block
    while blocks_left:
        n = min(blocks_left, CHUNK_BYTES // block_bytes)
        blocks_left -= n
        if tensor.format in ("F16", "F32"):
            values = rng.standard_normal(n, np.float32) * np.float32(tensor.deviation)
            yield values.astype(np.float16 if tensor.format == "F16" else np.float32)
            continue
        words = rng.integers(0, 1 << 64, (n * block_bytes + 7) // 8, dtype=np.uint64)
        blocks = words.view(np.uint8)[: n * block_bytes].reshape(n, block_bytes)
        spread = np.ones(n) if tensor.one_scale else rng.uniform(0.75, 1.25, n)
        _FILL[tensor.format](blocks, tensor.deviation * spread)
        yield blocks
    if tensor.format == "I2_S":
        tail = np.zeros(I2_S_TAIL_BYTES // 4, "<f4")
        tail[0] = tensor.deviation / 0.816
        yield tail


def vocabulary(size: int) -> tuple[list[bytes], list[float], list[int]]:
    """Tokens, scores and types of a SentencePiece vocabulary: three special tokens, the bytes, the space, ASCII
    characters, and made-up words up to `size`."""
    tokens = [b"<unk>", b"<s>", b"</s>", *(f"<0x{i:02X}>".encode() for i in range(256))]
    types = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL] + [gguf.TokenType.BYTE] * 256
    tokens += ["▁".encode(), *(bytes([i]) for i in range(33, 127))]
    if size < len(tokens):
        raise ValueError(f"a vocabulary of {size} tokens has no room for the {len(tokens)} that every one has")
    tokens += [f"▁w{i}".encode() for i in range(size - len(tokens))]
    types += [gguf.TokenType.NORMAL] * (size - len(types))
    return tokens, [-float(i) for i in range(size)], types


def write_model(
    path: Path, shape: Shape, file_format: str, *, name: str, head: str | None = None, seed: int = 0
) -> int:
    """Writes the model and returns its size in bytes. The file appears under its name when it is complete."""
    unfinished = path.with_name(path.name + ".unfinished")
    writer = gguf.GGUFWriter(unfinished, shape.architecture)
    writer.add_name(name)
    writer.add_file_type(FILE_FORMATS[file_format][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(shape.layers)
    writer.add_context_length(8192)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_vocab_size(shape.vocab)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.experts_used)
    tokens, scores, types = vocabulary(shape.vocab)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)

    listed = list(tensors(shape, file_format, head))
    for tensor in listed:
        kind, block, block_bytes = block_of(tensor.format)
        nbytes = int(np.prod(tensor.shape)) // block * block_bytes
        nbytes += I2_S_TAIL_BYTES if tensor.format == "I2_S" else 0
        # Bytes would have the shape of bytes, which the writer knows for its own formats only; the type is what counts.
        raw_type: Any = kind
        writer.add_tensor_info(f"{tensor.name}.weight", tensor.shape, np.dtype(np.float32), nbytes, raw_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.fout is not None
    out = writer.fout[0]
    writer.write_padding(out, out.tell())
    rng = np.random.Generator(np.random.SFC64(seed))
    for tensor in listed:
        written = 0
        for chunk in chunks(tensor, rng):
            out.write(memoryview(chunk).cast("B"))
            written += chunk.nbytes
        writer.write_padding(out, written)
    writer.close()
    os.replace(unfinished, path)
    return path.stat().st_size


def main() -> None:
    """Writes one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--format", choices=FILE_FORMATS, required=True)
    parser.add_argument("--head", choices=["F16", "Q8_0", "Q6_K", "Q4_K"], help="format of the output matrix")
    parser.add_argument("--layers", type=int, help="fewer or more layers than the shape has")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    shape = SHAPES[args.shape]
    if args.layers:
        shape = replace(shape, layers=args.layers)
    begin = time.perf_counter()
    name = f"random {args.shape} {args.format}" + (f", {args.head} head" if args.head else "")
    size = write_model(args.output, shape, args.format, name=name, head=args.head, seed=args.seed)
    seconds = time.perf_counter() - begin
    print(f"{args.output}: {size / 1e6:.0f} MB in {seconds:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
