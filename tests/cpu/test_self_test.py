"""The self-test of the kernels from Python, and what `sterna doctor` makes of it. The C++ test breaks kernels."""

from __future__ import annotations

import json

import pytest
import sterna
from sterna import _core
from sterna.cli.main import main


@pytest.mark.parametrize("isa", _core.supported_isas())
def test_all_kernels_are_as_defined(isa: str) -> None:
    for family, cases, mismatch in _core.check_kernels(isa, seed=2):
        assert mismatch == "", family
        assert cases > 0
    families = [family for family, _, _ in _core.check_kernels(isa)]
    assert {"matmuls of few rows", "row-wise floats", "rope", "attention"} <= set(families)


def test_unknown_level() -> None:
    with pytest.raises(sterna.DeviceError):
        _core.check_kernels("mmx")


def test_doctor_names_kernels_and_the_level_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report["kernels"]) == _core.supported_isas()
    assert all(outcome.endswith("all as defined") for outcome in report["kernels"].values())
    assert report["processor"]["in use"] == _core.chosen_isa()


def test_doctor_fails_on_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def check(isa: str, seed: int) -> list[tuple[str, int, str]]:
        return [("rope", 8, ""), ("attention", 9, "f16, head of 64: element 3 is 0.5, not 0.25")]

    monkeypatch.setattr("sterna._core.check_kernels", check)
    monkeypatch.setattr("sterna._core.supported_isas", lambda: ["scalar", "avx2"])
    assert main(["doctor"]) == 1
    captured = capsys.readouterr()
    assert "17 cases" in captured.out and "1 of 2 families differ" in captured.out
    (first, _) = captured.err.splitlines()
    assert first == "error: the kernels for scalar are wrong: attention: f16, head of 64: element 3 is 0.5, not 0.25"
