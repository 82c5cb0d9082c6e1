"""`sterna bench` around the measuring: the work of a test, shares of the limits, saved rows, comparison, the plot."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from fake_model import FakeModel
from recurrent_models import RECURRENT
from sterna import _core
from sterna.bench import BenchTest, Work, weight_bytes_per_token, work_of
from sterna.bench_plot import roofline
from sterna.bench_rows import Comparison, compare, limit_fields, load_rows, share_text
from sterna.cli.main import main
from sterna.errors import ArgumentError, FileError
from sterna.machine import MachineLimits
from sterna.trace import trace

# Of the fake model: two layers; 4 heads over 2 K/V heads of 8; hidden 32, feed-forward 64, vocabulary 50.
_LAYER_MACS = 2 * (32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64)
_OUTPUT_MACS = 50 * 32
_LIMITS = MachineLimits(2, "avx512", 50e9, 1000e9, [(4, True, 50e9)], 1 << 30)


def _row(test: str = "tg128", speed: float = 60.0, model: str = "m", threads: int = 2, **extra: Any) -> dict[str, Any]:
    row = {"test": test, "tokens_per_second": speed, "runs": [0.9 * speed, speed, 1.2 * speed], "model": model}
    return {**row, "threads": threads, "isa": "avx512", "device": "cpu", "file_bytes": 800_000_000, **extra}


def _limited(test: str, speed: float, work: Work, **extra: Any) -> dict[str, Any]:
    return _row(test, speed, **extra) | limit_fields(work, speed, _LIMITS)


ROWS = [
    _limited("pp512", 700.0, Work(1.1e6, 0.97e9)),
    _limited("tg128", 60.0, Work(763e6, 1.24e9)),
    _limited("tg128@d4096", 50.0, Work(900e6, 1.24e9)),
    _limited("tg128", 90.0, Work(460e6, 1.24e9), model="<other> & \x1b[31mmore"),
]


@pytest.mark.parametrize("fused", [False, True])
def test_work_of_prefill_and_decode(fused: bool) -> None:
    program = trace(FakeModel("llama")).program
    program = program.fuse() if fused else program
    packed = weight_bytes_per_token(program)
    assert packed == 4 * (_LAYER_MACS + 64 * 32)  # f32, the output's 50 rows in panels of 16

    decode = work_of(program, BenchTest(generate=7))
    assert decode.macs_per_token == _LAYER_MACS + _OUTPUT_MACS
    # Tokens 1 to 7 see 2 to 8 keys; a key and its value are 2 heads of 8 each, in 2 bytes, in 2 layers.
    assert decode.bytes_per_token == packed + 5 * 128
    deep = work_of(program, BenchTest(generate=7, depth=1000))
    assert deep.bytes_per_token - decode.bytes_per_token == 1000 * 128
    together = work_of(program, BenchTest(generate=7, batch=4))
    assert together.bytes_per_token == packed / 4 + 5 * 128
    assert together.macs_per_token == decode.macs_per_token

    output_bytes = 4 * 64 * 32
    prefill = work_of(program, BenchTest(prompt=1000), run_tokens=512)
    assert prefill.macs_per_token == _LAYER_MACS + _OUTPUT_MACS / 1000
    assert prefill.bytes_per_token == (2 * 4 * _LAYER_MACS + output_bytes) / 1000


def test_a_window_limits_what_decode_reads() -> None:
    program = trace(FakeModel("mistral", **{"attention.sliding_window": 100})).program
    near, far = (work_of(program, BenchTest(generate=1, depth=depth)).bytes_per_token for depth in (200, 2000))
    assert near == far == weight_bytes_per_token(program) + 100 * 128


@pytest.mark.parametrize("batch", [1, 4])
def test_states_are_read_and_written_by_each_token(batch: int) -> None:
    """Two layers with 40 columns of a window of 3 and 4 heads of 12 x 20; of any depth, for each sequence its own."""
    program = trace(RECURRENT["mamba2"]()).program
    channels = 48 + 2 * 2 * 20
    for depth in (0, 1000):
        decode = work_of(program, BenchTest(generate=7, depth=depth, batch=batch))
        states = 2 * 4 * (3 * channels + 48 * 20)
        assert decode.bytes_per_token == weight_bytes_per_token(program) / batch + 2 * states


def test_a_matrix_for_each_head_is_read_whole() -> None:
    """Of MLA: 4 heads that turn 8 numbers into 32, and 32 into 12, beside the experts."""
    builder = _core.ProgramBuilder()
    tokens = builder.add_input("tokens", ("T",))
    table = builder.add_weight("table", (50, 32), "F32")
    heads = builder.add_weight("heads", (4, 32, 8), "F32")
    builder.begin_function("logits")
    (x,) = builder.emit("embed", "embed", [("tokens", tokens), ("w", table)], {}, "")
    (x,) = builder.emit("reshape", "split", [("x", x)], {"dims": "4, 8"}, "")
    builder.set_outputs(builder.emit("head_linear", "y", [("x", x), ("w", heads)], {"activation": "auto"}, ""))
    program = builder.finish()
    assert work_of(program, BenchTest(generate=1)) == Work(4 * 4 * 32 * 8, 4 * 32 * 8)


def test_experts_are_read_as_far_as_they_are_used() -> None:
    builder = _core.ProgramBuilder()
    tokens = builder.add_input("tokens", ("T",))
    table = builder.add_weight("table", (50, 32), "F32")
    router = builder.add_weight("router", (8, 32), "F32")
    gate, up = (builder.add_weight(name, (8, 64, 32), "F32") for name in ("gate", "up"))
    down = builder.add_weight("down", (8, 32, 64), "F32")
    builder.begin_function("logits")
    (x,) = builder.emit("embed", "embed", [("tokens", tokens), ("w", table)], {}, "")
    (logits,) = builder.emit("linear", "router", [("x", x), ("w", router)], {"activation": "auto"}, "")
    experts, weights = builder.emit("route", "route", [("x", logits)], {"used": 2, "normalize": True}, "")
    operands = [("x", x), ("experts", experts), ("weights", weights), ("gate", gate), ("up", up), ("down", down)]
    y = builder.emit("expert_glu", "experts", operands, {"glu": "silu", "activation": "auto"}, "")
    builder.set_outputs(y)
    program = builder.finish()
    each, panel = 3 * 64 * 32, 4 * 16 * 32
    assert weight_bytes_per_token(program) == 2 * 4 * each + panel
    assert work_of(program, BenchTest(generate=1)).macs_per_token == 2 * each + 8 * 32
    two = work_of(program, BenchTest(generate=1, batch=2))
    assert two.bytes_per_token == pytest.approx((4 * each * 8 * (1 - 0.75**2) + panel) / 2)
    assert work_of(program, BenchTest(prompt=512)).bytes_per_token == pytest.approx((4 * each * 8 + panel) / 512)


def test_share_is_of_the_nearer_limit() -> None:
    assert limit_fields(Work(500e6, 1e9), 90.0, _LIMITS) == {
        "share": pytest.approx(0.9),
        "limit": "memory",
        "work_bytes_per_token": 500e6,
        "work_macs_per_token": 1e9,
        "machine_bytes_per_second": 50e9,
        "machine_macs_per_second": 1000e9,
    }
    row = _limited("pp512", 650.0, Work(1e6, 1e9))
    assert (row["limit"], share_text(row)) == ("integer", "65 % integer")
    assert share_text(_row()) == ""


def test_comparison_by_model_test_and_threads() -> None:
    now = [_row(speed=66.0), _row("pp512", 700.0), _row(threads=1)]
    saved = [_row("pp512", 350.0), _row(speed=60.0), _row(speed=1.0, model="another")]
    first, second = compare(now, saved)
    assert (first.ratio, second.ratio) == (pytest.approx(1.1), 2.0)
    assert second.spread == (pytest.approx(630 / 420), pytest.approx(840 / 315))
    with pytest.raises(ArgumentError, match="no test of the same model"):
        compare(now, [_row(threads=3)])


def test_spread_leaves_outliers_out() -> None:
    steady = _row() | {"runs": [50.0, 50.0, 50.0, 50.0, 50.0, 5.0, 500.0]}
    assert Comparison(steady, steady).spread == (1.0, 1.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no JSON"),
        ("[]", "no list"),
        ('{"test": 1}', "no list"),
        ("[1]", "no object"),
        (json.dumps([{"test": "pp1"}]), "no tokens_per_second"),
        (json.dumps([_row() | {"runs": []}]), "runs"),
        (json.dumps([_row() | {"runs": [0]}]), "runs"),
        (json.dumps([_row() | {"tokens_per_second": float("nan")}]), "tokens_per_second"),
        (json.dumps([_row() | {"threads": "2"}]), "threads"),
        (json.dumps([_row() | {"model": None}]), "no text"),
        (json.dumps([_row() | {"share": 0.5}]), "no work_bytes_per_token"),
        (json.dumps([ROWS[0] | {"machine_macs_per_second": -1}]), "machine_macs_per_second"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_saved_rows_are_checked(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(content)
    with pytest.raises(ArgumentError, match=message):
        load_rows(path)


def test_absent_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(FileError):
        load_rows(tmp_path / "absent.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\0")
    with pytest.raises(ArgumentError):
        load_rows(tmp_path / "binary.json")


def _numbers(pattern: str, text: str) -> list[float]:
    return [float(number) for number in re.findall(pattern, text)]


def test_plot_is_a_picture_with_every_row_in_it() -> None:
    svg = roofline(ROWS)
    root = ElementTree.fromstring(svg)
    texts = ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]
    for row in ROWS:
        assert row["test"] in texts
        assert share_text(row) in texts
    assert [texts.count(str(number)) for number in (1, 2, 3, 4)] >= [2, 2, 2, 2]  # beside the dot and in the key
    assert "2 threads, avx512: 50.0 GB/s, 1000 GMAC/s" in texts
    assert not any(ord(character) < 32 and character != "\n" for character in svg)
    # Nothing leaves the picture, and more work per byte stands farther right.
    _, _, width, height = (float(number) for number in root.attrib["viewBox"].split())
    assert all(0 <= x <= width for x in _numbers(r' (?:cx|x)="([-\d.]+)"', svg))
    assert all(0 <= y <= height for y in _numbers(r' (?:cy|y)="([-\d.]+)"', svg))
    # Drawn from the fastest down: prefill, then ternary, short and deep decode.
    xs = _numbers(r'cx="([\d.]+)"', svg)[: len(ROWS)]
    assert xs == sorted(xs, reverse=True)


@pytest.mark.parametrize("count", [1, 60])
def test_plot_of_few_and_of_many_rows(count: int) -> None:
    rows = [_limited(f"pp{i + 1}", 100.0 + i % 3, Work(1e9 / (i + 1), 1e9)) for i in range(count)]
    assert roofline(rows).count("<circle") == count + 1


def test_plot_without_limits() -> None:
    with pytest.raises(ArgumentError, match="what the machine can do"):
        roofline([_row()])


def test_saved_rows_stand_for_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now, saved, plot = tmp_path / "now.json", tmp_path / "saved.json", tmp_path / "plot.svg"
    now.write_text(json.dumps(ROWS))
    saved.write_text(json.dumps([row | {"tokens_per_second": row["tokens_per_second"] / 2} for row in ROWS]))
    assert main(["bench", str(now), "--compare", str(saved), "--plot", str(plot)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(ROWS)
    assert all(" 2.000 (" in line for line in lines[2:])
    assert "\x1b" not in "".join(lines)
    assert ElementTree.parse(plot).getroot().tag.endswith("svg")

    assert main(["bench", str(now), "--compare", str(saved), "-o", "json"]) == 0
    assert [row["ratio"] for row in json.loads(capsys.readouterr().out)] == [2.0] * len(ROWS)
    assert main(["bench", str(now)]) == 0
    assert "60 % integer" not in capsys.readouterr().out.splitlines()[3]


def test_plot_into_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "saved.json"
    saved.write_text(json.dumps(ROWS))
    assert main(["bench", str(saved), "--plot", str(tmp_path / "absent" / "plot.svg")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("option", ["x.gguf", "--compare=x.json", "--plot=x.svg"])
def test_machine_goes_with_no_model(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--machine", option]) == 2
    assert "--machine measures no model" in capsys.readouterr().err


def test_machine_table_and_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = []

    def measure(threads: int) -> MachineLimits:
        asked.append(threads)
        return _LIMITS

    monkeypatch.setattr("sterna.machine.measure_limits", measure)
    monkeypatch.setattr("sterna._core.available_cpus", lambda: 6)
    assert main(["bench", "--machine"]) == 0
    assert asked == [1, 2, 4, 6]
    assert "| 2 | avx512 | 50.0 | 4 streams per thread, prefetch | 1000 |" in capsys.readouterr().out
    assert main(["bench", "--machine", "-t", "3", "-o", "json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert asked[-1] == 3
    assert found["reads"] == [{"streams": 4, "prefetch": True, "bytes_per_second": 50e9}]
    assert found["bytes_per_second"] == 50e9 and found["macs_per_second"] == 1000e9
