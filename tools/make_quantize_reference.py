"""Writes what tests compare `sterna quantize` with: the squared errors that ggml's quantisers reach on given rows, the
formats that llama.cpp's file types give the tensors of given models, and ternary weights in ggml's bytes.

    python tools/make_quantize_reference.py MODEL.gguf

MODEL has some Q8_0, F16 or F32 matrices of at least 256 columns to take rows from. Needs the `peers` extra.
"""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile
from pathlib import Path

import llama_cpp.llama_cpp as llama
import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "python")]

from quantize_models import CASES, Case, tensors_of, write_case  # noqa: E402
from sterna import _core  # noqa: E402
from sterna.quantization.mixes import MIXES  # noqa: E402

DATA = ROOT / "tests" / "data" / "quantize"
SEARCHED = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
WITH_IMPORTANCE = (*SEARCHED, "Q4_0", "Q4_1", "Q5_0", "Q5_1")
TERNARY = ("TQ1_0", "TQ2_0", "Q1_0", "Q2_0")
TERNARY_SCALE = 0.375
COLUMNS, ROWS = 256, 32

Floats = npt.NDArray[np.float32]


def rows_of(model: Path) -> dict[str, Floats]:
    """[ROWS, COLUMNS] of a matrix of the model, and of distributions that are harder."""
    file = _core.Gguf(model)
    tensor = next(
        t for t in file.tensors if t.format in ("Q8_0", "F16", "F32") and len(t.shape) == 2 and t.shape[1] >= COLUMNS
    )
    real = _core.dequantize(file.read(tensor.name), tensor.format).reshape(tensor.shape)
    rng = np.random.default_rng(1)
    return {
        "model": real[:: tensor.shape[0] // ROWS][:ROWS, :COLUMNS].astype(np.float16).astype(np.float32),
        "normal": (0.02 * rng.standard_normal((ROWS, COLUMNS))).astype(np.float16).astype(np.float32),
        "heavy tails": rng.standard_t(3, (ROWS, COLUMNS)).astype(np.float16).astype(np.float32),
        "one side": rng.exponential(1, (ROWS, COLUMNS)).astype(np.float16).astype(np.float32),
    }


def ggml_quantize(weights: Floats, name: str, importance: Floats | None) -> npt.NDArray[np.uint8]:
    base = ctypes.CDLL(str(Path(llama.__file__).parent / "lib" / "libggml-base.so"))
    base.ggml_quantize_chunk.restype = base.ggml_row_size.restype = ctypes.c_size_t
    base.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    base.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]
    kind = next(info.id for info in _core.formats() if info.name == name)
    out = np.zeros(len(weights) * base.ggml_row_size(kind, weights.shape[1]), np.uint8)
    given = None if importance is None else importance.ctypes.data
    base.ggml_quantize_init(kind)
    base.ggml_quantize_chunk(kind, weights.ctypes.data, out.ctypes.data, 0, *weights.shape, given)
    return out


def squared_error(weights: Floats, data: npt.NDArray[np.uint8], name: str, importance: Floats | None) -> float:
    difference = weights.astype(np.float64) - _core.dequantize(data, name).reshape(weights.shape)
    return float((difference**2 * (1 if importance is None else importance)).sum())


def write_errors(model: Path) -> None:
    rows = rows_of(model)
    importance = np.random.default_rng(2).lognormal(0, 1.5, COLUMNS).astype(np.float16).astype(np.float32)
    errors: dict[str, dict[str, float]] = {}
    for formats, weigh in ((SEARCHED, None), (WITH_IMPORTANCE, importance)):
        for name in formats:
            key = name if weigh is None else f"{name} weighted"
            errors[key] = {
                kind: squared_error(w, ggml_quantize(w, name, weigh), name, weigh) for kind, w in rows.items()
            }
    np.savez_compressed(
        DATA / "rows.npz",
        importance=importance.astype(np.float16),
        **{k: w.astype(np.float16) for k, w in rows.items()},
    )
    (DATA / "ggml_errors.json").write_text(json.dumps(errors, indent=1) + "\n")


def write_ternary() -> None:
    rng = np.random.default_rng(3)
    arrays: dict[str, npt.NDArray[np.generic]] = {"scale": np.float32(TERNARY_SCALE)[None]}
    for name in TERNARY:
        codes = rng.choice([-1, 1] if name == "Q1_0" else [-1, 0, 1], (3, 512)).astype(np.int8)
        arrays[f"{name} codes"] = codes
        arrays[name] = ggml_quantize(codes * np.float32(TERNARY_SCALE), name, None)
    np.savez_compressed(DATA / "ggml_ternary.npz", **arrays)  # type: ignore[arg-type]


def formats_by_llama_cpp(case: Case, type_: str) -> dict[str, str]:
    """Formats by tensor; empty where llama.cpp refuses."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source.gguf", Path(folder) / "target.gguf"
        write_case(source, case)
        params = llama.llama_model_quantize_default_params()
        params.ftype, params.nthread = MIXES[type_].file_type, 1
        keep = []
        if case.importance:
            entries = [(n, s) for n, s in tensors_of(case).items() if len(s) > 1]
            data = (llama.llama_model_imatrix_data * (len(entries) + 1))()
            for i, (name, shape) in enumerate(entries):
                ones = np.ones(shape[-1] * (shape[0] if len(shape) > 2 else 1), np.float32)
                keep.append(ones)
                data[i].name = name.encode()
                data[i].data = ones.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
                data[i].size = ones.size
            params.imatrix = ctypes.cast(data, type(params.imatrix))
        if llama.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)) != 0:
            return {}
        return {tensor.name: tensor.format for tensor in _core.Gguf(target).tensors}


def shortened(formats: dict[str, str], layers: int) -> dict[str, str]:
    """By name without the layer: the formats of the layers in order, one where all have the same."""
    found: dict[str, list[str]] = {}
    for name in sorted(formats, key=lambda n: (int(n.split(".")[1]) if n.startswith("blk.") else -1, n)):
        found.setdefault(name.split(".", 2)[2] if name.startswith("blk.") else name, []).append(formats[name])
    return {name: " ".join(all_ if len(set(all_)) > 1 else all_[:1]) for name, all_ in found.items()}


def write_formats() -> None:
    table = {
        name: {type_: shortened(formats_by_llama_cpp(case, type_), case.layers) for type_ in MIXES if type_ != "MXFP4"}
        for name, case in CASES.items()
    }
    (DATA / "llama_cpp_formats.json").write_text(json.dumps(table, indent=1) + "\n")


def main() -> None:
    DATA.mkdir(parents=True, exist_ok=True)
    write_errors(Path(sys.argv[1]))
    write_ternary()
    write_formats()


if __name__ == "__main__":
    main()
