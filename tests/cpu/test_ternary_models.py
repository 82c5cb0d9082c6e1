"""Whole ternary models: the same weights give the same bits in every dialect, on every level; what is malformed is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import ternary_dialects as dialects
from gguf import GGMLQuantizationType
from kernel_cases import LEVELS, Floats, assert_same_bits
from sterna import _core
from sterna.diff import diff
from sterna.errors import ArgumentError, ModelFormatError, UnsupportedModelError
from sterna.interpreter import Interpreter
from sterna.loading import plan
from sterna.trace import trace
from ternary_dialects import BLOCKS, TYPES, Codes, RawFile, RawTensor

SEED = 41
TOKENS = np.random.default_rng(SEED).integers(0, 96, 40).astype(np.int32)
ARCHITECTURES = ["bitnet", "bitnet-25", "llama", "qwen3"]
# The dialects beside TQ2_0, and the layout that each ends in.
LAYOUTS = {
    "TQ1_0": "ternary1_6", "TQ2_0": "ternary2", "I2_S": "ternary2", "I2_S_ARM": "ternary2", "Q2_0": "ternary2",
    "Q2_0_G128": "ternary2", "Q1_0": "binary",
}  # fmt: skip
HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM, LAYERS, VOCAB = 256, 512, 4, 2, 64, 2, 96
MATRICES = {
    "attn_q": (HEADS * HEAD_DIM, HIDDEN), "attn_k": (KV_HEADS * HEAD_DIM, HIDDEN), "attn_v": (KV_HEADS * HEAD_DIM, HIDDEN),
    "attn_output": (HIDDEN, HEADS * HEAD_DIM), "ffn_gate": (INTERMEDIATE, HIDDEN), "ffn_up": (INTERMEDIATE, HIDDEN),
    "ffn_down": (HIDDEN, INTERMEDIATE),
}  # fmt: skip

Matrix = Callable[[str, tuple[int, int], np.random.Generator], Codes]


def ternary(name: str, shape: tuple[int, int], rng: np.random.Generator) -> Codes:
    return rng.integers(-1, 2, shape).astype(np.int8)


def signs(name: str, shape: tuple[int, int], rng: np.random.Generator) -> Codes:
    return (2 * rng.integers(0, 2, shape) - 1).astype(np.int8)


def write_model(
    path: Path,
    architecture: str,
    dialect: str,
    *,
    codes: Matrix = ternary,
    scale: Callable[[int, np.random.Generator], Any] = lambda index, rng: 0.0625 * (1 + index % 3),
    formats: dict[str, str] | None = None,
    head: str | None = None,
) -> Path:
    """A tiny model, the same for every dialect. `scale`: of matrix `index`; `formats`: other dialects of some matrices.

    `head`: a dialect of the output matrix, which is F32 otherwise.
    """
    rng = np.random.default_rng(SEED)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    tensors: list[RawTensor] = []

    def floats(name: str, *shape: int, around: float = 0.0) -> None:
        values = (around + rng.standard_normal(shape) * (0.1 if around else 1.0)).astype(np.float32)
        tensors.append(RawTensor(name, tuple(reversed(shape)), 0, values.tobytes()))

    def matrix(name: str, shape: tuple[int, int], index: int, kind: str) -> None:
        # The numbers are drawn alike for every dialect.
        numbers, of_matrix = codes(name, shape, rng), np.random.default_rng(index)
        data = dialects.encode(kind, numbers, scale(index, of_matrix))
        tensors.append(RawTensor(name, tuple(reversed(shape)), TYPES[kind], data.tobytes()))

    floats("token_embd.weight", VOCAB, HIDDEN)
    floats("output_norm.weight", HIDDEN, around=1.0)
    for layer in range(LAYERS):
        norms = {"attn_norm": HIDDEN, "ffn_norm": HIDDEN}
        if architecture.startswith("bitnet"):
            norms |= {"attn_sub_norm": HEADS * HEAD_DIM, "ffn_sub_norm": INTERMEDIATE}
        if architecture == "qwen3":
            norms |= {"attn_q_norm": HEAD_DIM, "attn_k_norm": HEAD_DIM}
        for name, size in norms.items():
            floats(f"blk.{layer}.{name}.weight", size, around=1.0)
        for index, (name, shape) in enumerate(MATRICES.items()):
            matrix(f"blk.{layer}.{name}.weight", shape, index, (formats or {}).get(name, dialect))
    if head is not None:
        matrix("output.weight", (VOCAB, HIDDEN), 99, head)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    head_bytes = path.read_bytes()
    return RawFile(int.from_bytes(head_bytes[16:24], "little"), head_bytes[24:], tuple(tensors)).write(path)


def opened(path: Path, dialect: str = "") -> _core.Gguf:
    return _core.Gguf(path, i2s_order="arm" if dialect == "I2_S_ARM" else "x86")


def logits(file: _core.Gguf, isa: str = "", fused: bool = True) -> tuple[Floats, Floats, dict[str, int]]:
    """Of a sequence at once, and of two of its tokens one by one; layouts."""
    program = trace(file).program
    compiled = _core.compile_cpu(
        program.fuse() if fused else program, file, threads=2, isa=isa, max_tokens=64, max_outputs=64
    )
    compiled.reserve_pages(2)
    rows = np.arange(len(TOKENS), dtype=np.int32)
    together = compiled.run(TOKENS, rows, np.zeros_like(rows), [[0]], rows)
    single = [compiled.run(TOKENS[i : i + 1], rows[i : i + 1], rows[:1], [[1]], rows[:1]) for i in range(2)]
    return together, np.concatenate(single), compiled.layouts


@cache
def reference(folder: Path, architecture: str, codes: Matrix, isa: str) -> tuple[Floats, Floats]:
    path = write_model(folder / f"{architecture}-{codes.__name__}.gguf", architecture, "TQ2_0", codes=codes)
    together, single, layouts = logits(opened(path), isa)
    assert layouts["ternary2"] == LAYERS * len(MATRICES)
    assert np.isfinite(together).all()
    assert_same_bits(single, together[:2])
    return together, single


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ternary")


@pytest.mark.parametrize(
    ("architecture", "level"),
    [("bitnet-b1.58", level) for level in LEVELS] + [(name, LEVELS[-1]) for name in ARCHITECTURES],
)
@pytest.mark.parametrize("dialect", LAYOUTS)
def test_dialects_give_the_bits_of_tq2_0(architecture: str, dialect: str, level: str, folder: Path) -> None:
    codes = signs if dialect == "Q1_0" else ternary
    path = write_model(folder / "model.gguf", architecture, dialect, codes=codes)
    file = opened(path, dialect)
    rules = {node.attributes["activation"] for node in trace(file).program.nodes() if node.op == "linear"}
    assert rules == {"int8_per_token"}
    together, single, layouts = logits(file, level)
    assert layouts[LAYOUTS[dialect]] == LAYERS * len(MATRICES)
    want, want_single = reference(folder, architecture, codes, level)
    assert_same_bits(together, want)
    assert_same_bits(single, want_single)
    assert_same_bits(want, reference(folder, architecture, codes, LEVELS[0])[0])


@pytest.mark.parametrize("dialect", LAYOUTS)
def test_ternary_heads(dialect: str, folder: Path) -> None:
    """The output matrix in a dialect as well."""
    codes = signs if dialect == "Q1_0" else ternary
    want = logits(opened(write_model(folder / "a.gguf", "llama", "TQ2_0", codes=codes, head="TQ2_0")))
    got = logits(opened(write_model(folder / "b.gguf", "llama", dialect, codes=codes, head=dialect), dialect))
    assert_same_bits(got[0], want[0])
    assert got[2][LAYOUTS[dialect]] == want[2]["ternary2"] == LAYERS * len(MATRICES) + 1


def two_scales(partner: str) -> Callable[[int, np.random.Generator], Any]:
    """One number for each matrix but that of index 4, ffn_gate, which has two."""
    count = INTERMEDIATE * HIDDEN // BLOCKS[partner]
    return lambda index, rng: np.tile(np.float32([0.25, 0.5]), count // 2) if index == 4 else 0.0625


@pytest.mark.parametrize("dialect", LAYOUTS)
def test_dialects_among_other_tensors(dialect: str, folder: Path) -> None:
    """Where not all are ternary, activations are rounded per 256, and every dialect still gives the bits of TQ2_0."""
    codes = signs if dialect == "Q1_0" else ternary
    partner = "Q2_0_G128" if dialect == "Q2_0_G128" else "Q2_0"
    results = []
    for kind in ("TQ2_0", dialect):
        path = write_model(
            folder / "model.gguf",
            "llama",
            kind,
            codes=codes,
            scale=two_scales(partner),
            formats={"ffn_gate": partner},
        )
        file = opened(path, kind)
        program = trace(file).program
        assert {node.attributes["activation"] for node in program.nodes() if node.op == "linear"} == {"auto"}
        results.append(logits(file))
    layout = "int2_wide" if dialect == "Q2_0_G128" else "int2"
    assert results[0][2][layout] == results[1][2][layout] == LAYERS
    assert_same_bits(results[0][0], results[1][0])


def unequal(dialect: str) -> Callable[[int, np.random.Generator], Any]:
    """A scale for every block; for I2_S one that no half is."""

    def scales(index: int, rng: np.random.Generator) -> Any:
        if dialect not in BLOCKS:
            return 0.0503 * (1 + index)
        rows, columns = list(MATRICES.values())[index]
        return rng.uniform(0.03, 0.1, rows * columns // BLOCKS[dialect])

    return scales


def fourth_codes(name: str, shape: tuple[int, int], rng: np.random.Generator) -> Codes:
    return rng.integers(-1, 3, shape).astype(np.int8)


@pytest.mark.parametrize("dialect", LAYOUTS)
def test_unequal_scales_against_the_reference(dialect: str, folder: Path) -> None:
    """Within a dialect: the interpreter over weights that numpy has decoded, and the same bits on every level."""
    codes = {"Q1_0": signs, "Q2_0": fourth_codes, "Q2_0_G128": fourth_codes}.get(dialect, ternary)
    path = write_model(folder / "model.gguf", "qwen3", dialect, codes=codes, scale=unequal(dialect))
    file = opened(path, dialect)
    program = trace(file).program
    rule = "auto" if dialect.startswith("Q") else "int8_per_token"
    assert {node.attributes["activation"] for node in program.nodes() if node.op == "linear"} == {rule}

    def weights(name: str) -> Floats:
        tensor = file.find(f"{name}.weight")
        assert tensor is not None
        data = file.read(tensor.name)
        if tensor.format == "F32":
            return data.view(np.float32).reshape(tensor.shape)
        if dialect.startswith("TQ"):
            kind = GGMLQuantizationType[dialect]
            return gguf.quants.dequantize(data.reshape(tensor.shape[0], -1), kind).reshape(tensor.shape)
        return dialects.decode(dialect, data).reshape(tensor.shape)

    want = Interpreter(program, weights, kv_dtype="f16").run(TOKENS.tolist())
    results = [logits(file, level) for level in LEVELS]
    for got, single, layouts in results:
        assert_same_bits(got, results[0][0])
        assert_same_bits(single, got[:2])
        assert layouts.get("binary", 0) == 0
    # A code of an activation may fall to the other side.
    assert np.linalg.norm(results[0][0] - want) <= 5e-3 * np.linalg.norm(want)
    assert not [d for d in diff(file, program.fuse(), TOKENS[:4].tolist()) if d.diverges]


@pytest.mark.parametrize("dialect", LAYOUTS)
@pytest.mark.parametrize("scale", ["one", "unequal"])
def test_plan_is_exact(dialect: str, scale: str, folder: Path) -> None:
    options = {} if scale == "one" else {"scale": unequal(dialect)}
    path = write_model(
        folder / "model.gguf", "llama", dialect, codes=signs if dialect == "Q1_0" else ternary, **options
    )
    order = "arm" if dialect == "I2_S_ARM" else "x86"
    file = opened(path, dialect)
    compiled = _core.compile_cpu(trace(file).program.fuse(), file)
    planned = plan(path, i2s_order=order, context=64)
    assert planned.weights == compiled.weight_bytes
    matrices = [tensor for tensor in file.tensors if tensor.format == dialect]
    floats = sum(tensor.bytes for tensor in file.tensors if tensor.format != dialect)
    # The output matrix is the embedding, which is held once.
    assert compiled.weight_bytes - floats <= 1.05 * sum(tensor.bytes for tensor in matrices)


# What is malformed.


def changed(path: Path, name: str, change: Callable[[bytearray], None]) -> Path:
    """The file with the bytes of one tensor changed."""
    raw = bytearray(path.read_bytes())
    tensor = opened(path).require(name)
    data = raw[tensor.offset : tensor.offset + tensor.bytes]
    change(data)
    raw[tensor.offset : tensor.offset + tensor.bytes] = data
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("dialect", ["I2_S", "I2_S_ARM"])
@pytest.mark.parametrize("row", [0, 37, KV_HEADS * HEAD_DIM - 1])
def test_codes_that_mean_nothing(dialect: str, row: int, folder: Path) -> None:
    def third(data: bytearray) -> None:
        data[row * HIDDEN // 4 + 33] |= 0xC0  # the first weight of a byte

    path = changed(write_model(folder / "model.gguf", "bitnet", dialect), "blk.1.attn_k.weight", third)
    column = 129 if dialect == "I2_S" else 145 - 16  # byte 33 of a row; both orders begin a group with it
    message = f"tensor blk.1.attn_k holds a ternary code that means nothing, 3, in row {row}, column {column}"
    with pytest.raises(UnsupportedModelError, match=message):
        logits(opened(path, dialect))


@pytest.mark.parametrize("dialect", LAYOUTS)
@pytest.mark.parametrize("block", [0, 5])
@pytest.mark.parametrize("bits", [0x7C00, 0xFE01], ids=["infinite", "NaN"])
def test_scales_that_are_no_numbers(dialect: str, block: int, bits: int, folder: Path) -> None:
    size = {"TQ1_0": 54, "TQ2_0": 66, "Q2_0": 18, "Q2_0_G128": 34, "Q1_0": 18}

    def break_scale(data: bytearray) -> None:
        if dialect not in BLOCKS:
            data[-32:-28] = np.array([bits], np.uint16).view(np.float16).astype("<f4").tobytes()
            return
        at = block * size[dialect] + (size[dialect] - 2 if dialect.startswith("TQ") else 0)
        data[at : at + 2] = bits.to_bytes(2, "little")

    codes = signs if dialect == "Q1_0" else ternary
    path = write_model(folder / "model.gguf", "llama", dialect, codes=codes)
    changed(path, "blk.0.ffn_up.weight", break_scale)
    place = "a scale behind its codes that is NaN or infinite"
    if dialect in BLOCKS:
        row, column = divmod(block * BLOCKS[dialect], HIDDEN)
        place = f"a NaN or infinite number in row {row}, column {column}"
    with pytest.raises(UnsupportedModelError, match=f"tensor blk.0.ffn_up holds {place}"):
        logits(opened(path, dialect))


@pytest.mark.parametrize("dialect", LAYOUTS)
def test_short_data(dialect: str, folder: Path) -> None:
    codes = signs if dialect == "Q1_0" else ternary
    path = write_model(folder / "model.gguf", "llama", dialect, codes=codes)
    raw = path.read_bytes()
    last = max(opened(path, dialect).tensors, key=lambda tensor: tensor.offset)
    for size in (last.offset, last.offset + last.bytes - 1):
        path.write_bytes(raw[:size])
        with pytest.raises(ModelFormatError, match="pass the end of the file"):
            opened(path, dialect)


def test_the_wrong_order_loads(folder: Path) -> None:
    """Nothing tells it: the weights are others."""
    path = write_model(folder / "model.gguf", "bitnet", "I2_S")
    right, wrong = (logits(_core.Gguf(path, i2s_order=order))[0] for order in ("x86", "arm"))
    assert np.linalg.norm(right - wrong) > 0.1 * np.linalg.norm(right)


def test_orders_have_names(folder: Path) -> None:
    path = write_model(folder / "model.gguf", "bitnet", "I2_S")
    with pytest.raises(ArgumentError, match='i2s_order is "ARM", must be "x86" or "arm"'):
        _core.Gguf(path, i2s_order="ARM")
    with pytest.raises(ArgumentError, match="i2s_order is 'ARM', must be one of x86, arm"):
        plan(path, i2s_order="ARM")
