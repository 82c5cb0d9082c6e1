"""Measuring the machine: each level's loops run, give plausible figures, and refuse what makes no sense. No speed is judged."""

from __future__ import annotations

import pytest
import sterna
from sterna import _core
from sterna.machine import measure_limits

_SMALL = 1 << 20


@pytest.mark.parametrize("isa", _core.supported_isas())
@pytest.mark.parametrize("threads", [1, 3])
def test_every_pattern_and_level_runs(isa: str, threads: int) -> None:
    machine = _core.Machine(threads=threads, isa=isa, buffer_bytes=_SMALL)
    assert machine.threads == threads
    assert _SMALL - 1024 * threads < machine.buffer_bytes <= _SMALL
    speeds = machine.read_speeds(2)
    assert {(streams, prefetch) for streams, prefetch, _ in speeds} == {
        (streams, prefetch) for streams in (1, 2, 4, 8) for prefetch in (False, True)
    }
    # Faster than any machine is: a mistaken unit. How slow a busy machine may be, nobody knows.
    assert all(0 < speed < 1e14 for _, _, speed in speeds)
    assert 0 < machine.macs_per_second(1) < 1e15


def test_defaults_are_those_of_plans() -> None:
    limits = measure_limits(buffer_bytes=_SMALL, repetitions=1)
    assert (limits.threads, limits.isa) == (_core.available_cpus(), _core.chosen_isa())
    assert limits.bytes_per_second == max(speed for _, _, speed in limits.reads)


@pytest.mark.parametrize(
    "arguments", [{"threads": -1}, {"threads": 5000}, {"buffer_bytes": 0}, {"threads": 4, "buffer_bytes": 4095}]
)
def test_impossible_arguments(arguments: dict[str, int]) -> None:
    with pytest.raises(sterna.ArgumentError):
        _core.Machine(**arguments)  # type: ignore[arg-type]


def test_unknown_level_and_too_much_memory() -> None:
    with pytest.raises(sterna.DeviceError, match="no instruction set"):
        _core.Machine(isa="mmx", buffer_bytes=_SMALL)
    with pytest.raises(sterna.MemoryBudgetError):
        _core.Machine(threads=1, buffer_bytes=1 << 60)


def test_repetitions_are_checked() -> None:
    machine = _core.Machine(threads=1, buffer_bytes=_SMALL)
    for measure in (machine.read_speeds, machine.macs_per_second):
        with pytest.raises(sterna.ArgumentError):
            measure(0)
