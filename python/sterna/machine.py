"""What the machine can do at most: the limits that `sterna bench` holds its results against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sterna import _core

# More than the caches of most machines. `sterna bench` measures in a second what `--machine` takes its time for.
SHORT_BUFFER_BYTES = 1 << 29
SHORT_REPETITIONS = 2
# Of a hundredth of a second each: more than other processes are likely to disturb.
_PEAK_REPETITIONS = 16


@dataclass(frozen=True)
class MachineLimits:
    """Some threads with the instructions of one level."""

    threads: int
    isa: str
    bytes_per_second: float  # of the fastest read pattern
    macs_per_second: float  # byte multiply-accumulates of the level's integer dot product
    reads: Sequence[tuple[int, bool, float]]  # streams per thread, software prefetch, bytes per second
    buffer_bytes: int

    @property
    def pattern(self) -> str:
        """The fastest read pattern in words."""
        streams, prefetch, _ = max(self.reads, key=lambda read: read[2])
        return f"{streams} stream{'s' if streams > 1 else ''} per thread" + (", prefetch" if prefetch else "")

    def as_json(self) -> dict[str, Any]:
        """For `sterna bench --machine -o json`."""
        reads = [{"streams": s, "prefetch": p, "bytes_per_second": speed} for s, p, speed in self.reads]
        return {**asdict(self), "pattern": self.pattern, "reads": reads}


def measure_limits(
    threads: int = 0, isa: str = "", *, buffer_bytes: int = 1 << 30, repetitions: int = 5
) -> MachineLimits:
    """Measures memory reads over `buffer_bytes`, the best of `repetitions`, and the integer peak.

    threads 0: one per CPU; isa "": the one in use. ArgumentError, DeviceError, MemoryBudgetError.
    """
    machine = _core.Machine(threads=threads, isa=isa, buffer_bytes=buffer_bytes)
    reads = machine.read_speeds(repetitions)
    return MachineLimits(
        machine.threads,
        isa or _core.chosen_isa(),
        max(speed for _, _, speed in reads),
        machine.macs_per_second(_PEAK_REPETITIONS),
        reads,
        machine.buffer_bytes,
    )


def measure_limits_shortly(threads: int = 0, isa: str = "") -> MachineLimits:
    """The same in about a second."""
    return measure_limits(threads, isa, buffer_bytes=SHORT_BUFFER_BYTES, repetitions=SHORT_REPETITIONS)
