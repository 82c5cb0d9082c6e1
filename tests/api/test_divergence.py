"""KL divergence against a saved reference run: every figure by hand, the file byte by byte, and what does not fit together."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sterna
import sterna.perplexity
from oracle import model_path
from sterna.cli.main import main
from sterna.divergence import Comparison
from sterna.reference_logits import ReferenceLogits, ReferenceLogitsOutput

CONTEXT = 31
FIRST = CONTEXT // 2
TEXT = "ba da fa ha ja la na pa " * 12
ORIGINAL, QUANTISED = "llama-256.Q4_0", "llama-256.IQ2_XXS"


def log_softmax(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    shifted = rows - rows.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@pytest.fixture(scope="module")
def original() -> Iterator[sterna.LLM]:
    with sterna.load(model_path(ORIGINAL), context=64, threads=2) as llm:
        yield llm


@pytest.fixture(scope="module")
def quantised() -> Iterator[sterna.LLM]:
    with sterna.load(model_path(QUANTISED), context=64, threads=2) as llm:
        yield llm


@pytest.fixture(scope="module")
def saved(original: sterna.LLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference") / "original.kld"
    found = original.perplexity(TEXT, context=CONTEXT, save_logits=path)
    assert float(found) == pytest.approx(float(original.perplexity(TEXT, context=CONTEXT)), rel=1e-6)
    return path


def parse(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [windows, context] and log-probabilities [windows, rows, vocab], by struct alone."""
    data = path.read_bytes()
    magic, context, vocab, windows = struct.unpack_from("<8siii", data)
    assert magic == b"_logits_"
    tokens = np.array(struct.unpack_from(f"<{windows * context}i", data, 20)).reshape(windows, context)
    at, rows = 20 + 4 * windows * context, []
    for _ in range(windows * (context - 1 - context // 2)):
        step, smallest, *steps = struct.unpack_from(f"<ff{vocab}H", data, at)
        rows.append([np.float32(np.float32(step) * np.float32(n)) + np.float32(smallest) for n in steps])
        at += 8 + 2 * (vocab + vocab % 2)
    assert at == len(data)
    return tokens, np.array(rows, np.float32).reshape(windows, -1, vocab)


def window_logits(llm: sterna.LLM, tokens: np.ndarray) -> np.ndarray:
    begun = tokens.tolist()
    if llm.tokenizer.add_bos:
        begun[0] = llm.tokenizer.bos_id
    return llm.logits(begun)[FIRST : CONTEXT - 1]


def test_the_file_is_that_of_llama_perplexity(original: sterna.LLM, saved: Path) -> None:
    tokens, rows = parse(saved)
    want = original.tokenize(TEXT, add_special=True)
    assert tokens.reshape(-1).tolist() == want[: len(want) // CONTEXT * CONTEXT]
    data, at = saved.read_bytes(), 20 + 4 * tokens.size
    for window in tokens:
        for logits in window_logits(original, window):
            # tools/perplexity/perplexity.cpp, log_softmax(n_vocab, logits, log_prob, tok), in float32.
            largest = logits.max()
            smallest = max(logits.min(), largest - np.float32(16))
            total = np.float32(math.log(np.exp(logits - largest).sum(dtype=np.float64)))
            step = (largest - smallest) / np.float32(65535)
            inverse = np.float32(1) / step
            steps = [int(np.rint(inverse * (x - smallest))) if x > smallest else 0 for x in logits]
            row = struct.pack(f"<ff{len(steps)}H", step, smallest - largest - total, *steps)
            assert data[at : at + len(row)] == row
            at += len(row)
    assert at == len(data)
    exact = np.stack([log_softmax(window_logits(original, window)) for window in tokens])
    assert np.abs(rows - exact).max() <= 16 / 65535 / 2 + 1e-5


def test_every_figure(original: sterna.LLM, quantised: sterna.LLM, saved: Path) -> None:
    tokens, rows = parse(saved)
    seen = []
    found = quantised.divergence(saved, TEXT, progress=lambda done, total: seen.append((done, total)))
    loss, base, kl, difference, same = [], [], [], [], []
    for window, reference in zip(tokens, rows.astype(np.float64), strict=True):
        for i, ours in enumerate(log_softmax(window_logits(quantised, window))):
            token, theirs = window[FIRST + i + 1], reference[i]
            loss.append(-ours[token])
            base.append(-theirs[token])
            kl.append(sum(math.exp(p) * (p - q) for p, q in zip(theirs, ours, strict=True) if p > -16))
            difference.append(math.exp(ours[token]) - math.exp(theirs[token]))
            same.append(ours.argmax() == theirs.argmax())
    n = len(loss)
    assert found.perplexity.count == found.reference.count == n == len(tokens) * (CONTEXT - 1 - FIRST)
    assert seen == [(i + 1, len(tokens)) for i in range(len(tokens))]

    def error(values: list[float]) -> float:
        return math.sqrt(np.var(values) / (n - 1))

    close = {"rel": 1e-9, "abs": 1e-12}
    assert found.perplexity.value == pytest.approx(math.exp(np.mean(loss)), **close)
    assert found.perplexity.error == pytest.approx(math.exp(np.mean(loss)) * error(loss), **close)
    assert found.reference.value == pytest.approx(math.exp(np.mean(base)), **close)
    ratio = math.exp(np.mean(loss)) / math.exp(np.mean(base))
    assert found.ratio.value == pytest.approx(ratio, **close)
    covariance = np.mean(np.array(loss) * base) - np.mean(loss) * np.mean(base)
    spread = math.sqrt((np.var(loss) + np.var(base) - 2 * covariance) / (n - 1))
    assert found.log_ratio.value == pytest.approx(math.log(ratio), **close)
    assert found.log_ratio.error == pytest.approx(spread, rel=1e-6)
    assert found.ratio.error == pytest.approx(ratio * spread, rel=1e-6)
    assert float(found) == found.kl.value == pytest.approx(np.mean(kl), **close)
    assert found.kl.error == pytest.approx(error(kl), **close)
    ordered = sorted(kl)
    for percent in (50, 90, 95, 99, 99.9):
        at = percent / 100 * (n - 1)
        below, above = ordered[int(at)], ordered[min(int(at) + 1, n - 1)]
        assert found.kl_percentiles[percent] == pytest.approx(below + (at - int(at)) * (above - below), **close)
    assert found.kl_max == pytest.approx(ordered[-1], **close)
    share = sum(same) / n
    assert (found.same_top.value, found.same_top.error) == pytest.approx((share, math.sqrt(share * (1 - share) / (n - 1))))
    assert 0 < share < 1
    squares = [d * d for d in difference]
    rms = math.sqrt(np.mean(squares))
    assert found.probability_difference.value == pytest.approx(np.mean(difference), **close)
    assert found.probability_difference_rms.value == pytest.approx(rms, **close)
    assert found.probability_difference_rms.error == pytest.approx(error(squares) / (2 * rms), **close)
    assert f"KL divergence, mean     {found.kl.value:.6f} ± " in str(found)


def test_a_model_does_not_diverge_from_itself(original: sterna.LLM, saved: Path) -> None:
    found = original.divergence(saved)
    assert abs(found.kl.value) < 1e-5 and found.kl_max < 2e-4
    assert found.same_top.value == 1
    assert found.ratio.value == pytest.approx(1, abs=1e-3)


def test_large_vocabularies_are_computed_in_parts(
    original: sterna.LLM, quantised: sterna.LLM, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = quantised.divergence(saved)
    monkeypatch.setattr("sterna.perplexity._PART_ELEMENTS", 4 * 320)
    monkeypatch.setattr("sterna.divergence._ELEMENTS", 3 * 320)
    assert quantised.divergence(saved) == whole
    original.perplexity(TEXT, context=CONTEXT, save_logits=tmp_path / "parts.kld")
    assert (tmp_path / "parts.kld").read_bytes() == saved.read_bytes()


def test_rows_without_a_range(tmp_path: Path) -> None:
    """All tokens alike: a step of 0. Far below: 16 below the largest."""
    tokens = np.zeros((1, 4), np.int32)
    with ReferenceLogitsOutput(tmp_path / "a.kld", tokens, 3) as file:
        file.add(np.float32([[2, 2, 2]]))
    with ReferenceLogits(tmp_path / "a.kld") as file:
        np.testing.assert_allclose(file.rows(0, 0, 1), math.log(1 / 3), rtol=1e-6)
    with ReferenceLogitsOutput(tmp_path / "a.kld", tokens, 3) as file:
        file.add(np.float32([[0, -8, -1000]]))
    with ReferenceLogits(tmp_path / "a.kld") as file:
        np.testing.assert_allclose(file.rows(0, 0, 1)[0] - file.rows(0, 0, 1)[0, 0], [0, -8, -16], atol=1e-3)
        comparison = Comparison()
        comparison.add(np.float32([[0, 0, 0]]), file.rows(0, 0, 1), np.int32([1]))
    found = comparison.result(1, 4)
    p = 1 / (1 + math.exp(-8))
    assert found.kl.value == pytest.approx(p * math.log(3 * p) + (1 - p) * math.log(3 * (1 - p)), rel=1e-3)
    assert (found.kl.error, found.same_top.value) == (0, 1)


def test_what_does_not_belong_together(original: sterna.LLM, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(sterna.ArgumentError, match=r"original\.kld: token 12 of window 0 is \d+, that of the text \d+: it was made"):
        original.divergence(saved, TEXT[:9] + "la" + TEXT[11:])
    with pytest.raises(sterna.ArgumentError, match=r"has 12 windows, the text 6"):
        original.divergence(saved, TEXT[: len(TEXT) // 2])
    with sterna.load(model_path(ORIGINAL), context=CONTEXT - 1) as short, pytest.raises(sterna.ArgumentError, match="its windows have 31 tokens, the context 30"):
        short.divergence(saved)
    with ReferenceLogitsOutput(tmp_path / "other.kld", np.zeros((1, 4), np.int32), 319) as file:
        file.add(np.zeros((1, 319), np.float32))
    with pytest.raises(sterna.ArgumentError, match="its vocabulary has 319 tokens, the model's 320"):
        original.divergence(tmp_path / "other.kld")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: b"", "header: is not that of"),
        (lambda data: b"GGUF" + data[4:], "header: is not that of"),
        (lambda data: data[:-1], "12 windows take"),
        (lambda data: data + b"\0", "12 windows take"),
        (lambda data: data[:8] + struct.pack("<i", 3) + data[12:], "n_ctx: is 3, expected 4"),
        (lambda data: data[:8] + struct.pack("<i", -5) + data[12:], "n_ctx: is -5"),
        (lambda data: data[:12] + struct.pack("<i", 0) + data[16:], "n_vocab: is 0"),
        (lambda data: data[:16] + struct.pack("<i", 1 << 30) + data[20:], "1073741824 windows take"),
        (lambda data: data[:20] + struct.pack("<i", 320) + data[24:], "tokens: one of them is not in the vocabulary of 320"),
        (lambda data: data[: 20 + 4 * 372] + struct.pack("<f", math.nan) + data[24 + 4 * 372 :], "a step or a smallest value of window 0"),
        (lambda data: data[: 20 + 4 * 372] + struct.pack("<f", 1e30) + data[24 + 4 * 372 :], "a step or a smallest value of window 0"),
        (lambda data: data[: 24 + 4 * 372] + struct.pack("<f", -1e30) + data[28 + 4 * 372 :], "a step or a smallest value of window 0"),
        (lambda data: data[: 20 + 4 * 372] + struct.pack("<f", 0.5) + data[24 + 4 * 372 :], r"a log-probability of window 0 is \d"),
    ],
)  # fmt: skip
def test_damaged_files(damage: object, says: str, original: sterna.LLM, saved: Path, tmp_path: Path) -> None:
    assert callable(damage)
    (tmp_path / "x.kld").write_bytes(damage(saved.read_bytes()))
    with pytest.raises(sterna.ModelFormatError, match=says):
        original.divergence(tmp_path / "x.kld")


def test_only_such_files_are_replaced_and_nothing_is_left_half_written(original: sterna.LLM, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF, and more")
    with pytest.raises(sterna.FileError, match=r"model\.gguf exists already, and is no file of log-probabilities"):
        original.perplexity(TEXT, context=CONTEXT, save_logits=model)
    assert model.read_bytes() == b"GGUF, and more"
    with pytest.raises(sterna.FileError, match="there is no folder"):
        original.perplexity(TEXT, context=CONTEXT, save_logits=tmp_path / "nowhere" / "x.kld")

    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(sterna.FileError, match="fifo is no regular file"):
        original.perplexity(TEXT, context=CONTEXT, save_logits=tmp_path / "fifo")
    (tmp_path / "fifo").unlink()

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        original.perplexity(TEXT, context=CONTEXT, save_logits=tmp_path / "x.kld", progress=interrupt)
    assert os.listdir(tmp_path) == ["model.gguf"]


def test_a_full_disk_leaves_nothing(saved: Path, tmp_path: Path) -> None:
    """While the head is written, and while rows are: a limit on the size of files stands for the disk."""
    program = """
import resource, sys
import numpy as np
from sterna.errors import FileError
from sterna.reference_logits import ReferenceLogitsOutput
limit, path = int(sys.argv[1]), sys.argv[2]
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    with ReferenceLogitsOutput(path, np.zeros((8, 64), np.int32), 1000) as file:
        for _ in range(8):
            file.add(np.zeros((31, 1000), np.float32))
except FileError as error:
    print(error)
"""
    for limit in (1000, 10_000):
        done = subprocess.run(
            [sys.executable, "-c", program, str(limit), str(tmp_path / "x.kld")], capture_output=True, text=True, check=True
        )
        assert f"cannot write {tmp_path / 'x.kld'}: no space left in {tmp_path} (File too large" in done.stdout
        assert os.listdir(tmp_path) == []


def test_links_stay_links(saved: Path, original: sterna.LLM, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    link = tmp_path / "link.kld"
    link.symlink_to(tmp_path / "folder" / "there.kld")
    original.perplexity(TEXT, context=CONTEXT, save_logits=link)
    assert link.is_symlink()
    assert (tmp_path / "folder" / "there.kld").read_bytes() == saved.read_bytes()


def test_command(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, reference = tmp_path / "text.txt", tmp_path / "r.kld"
    text.write_text(TEXT)
    model, quantised = str(model_path(ORIGINAL)), str(model_path(QUANTISED))
    context = ["-c", str(CONTEXT)]
    assert main(["perplexity", model, str(text), *context, "--save-logits", str(reference)]) == 0
    assert reference.read_bytes() == saved.read_bytes()
    capsys.readouterr()
    assert main(["perplexity", quantised, str(text), "--kl-divergence", str(reference), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kl"]["value"] > 0 and found["perplexity"]["windows"] == 12 and "50.0" in found["kl_percentiles"]
    assert main(["perplexity", quantised, "--kl-divergence", str(reference)]) == 0
    assert "same top token" in capsys.readouterr().out
    for arguments, code, says in (
        ([model], 2, "Missing argument 'FILE'"),
        ([model, str(text), "-c", "3"], 2, "3 is not in the range x>=4"),
        ([model, str(text), "--save-logits", "a", "--kl-divergence", "b"], 2, "are two runs"),
        ([model, "--kl-divergence", str(tmp_path / "none")], 1, "none: No such file"),
        ([model, "-c", "64", "--kl-divergence", str(reference)], 1, "its windows have 31 tokens, --context is 64"),
    ):
        assert main(["perplexity", *arguments]) == code
        assert says in capsys.readouterr().err
