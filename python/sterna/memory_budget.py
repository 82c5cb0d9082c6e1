"""Memory that this process may use, and what a caller allows of it."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from sterna.errors import ArgumentError

_log = logging.getLogger(__name__)

BUDGET_SHARE = 0.8  # of what is available, where nobody says


def parse_budget(budget: int | str | None) -> int | None:
    """Bytes of a budget such as 4 << 30 or "4GiB"; None: 80 % of what is available. ArgumentError."""
    if budget is None:
        available = available_memory()
        return None if available is None else int(available * BUDGET_SHARE)
    return parse_bytes(budget, "memory_budget")


def parse_bytes(size: int | str, name: str) -> int:
    """A number of bytes, or a text such as "4GiB". ArgumentError calls it by `name`."""
    if isinstance(size, int) and not isinstance(size, bool):
        number: float = size
    else:
        match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([kKmMgGtT]?)(i?)[bB]?\s*", str(size))
        if match is None or not isinstance(size, str):
            raise ArgumentError(f'{name} is {size!r:.60}, must be bytes, or a text such as "4GiB"')
        number = float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2].lower() or " ")
    if number < 1:
        raise ArgumentError(f"{name} is {size!r}, must be at least 1")
    return int(number)


def readable(count: int) -> str:
    """Bytes for people: 1.4 GiB."""
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def available_memory() -> int | None:
    """Bytes that this process can still take without swapping or passing a limit of a control group; None: unknown."""
    limits = [_system_memory(), *_cgroup_memory()]
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None


def _system_memory() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        _log.debug("no MemAvailable in /proc/meminfo")
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _cgroup_memory(cgroups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[int | None]:
    """What is left under each limit, from the group of this process upwards; versions 1 and 2 of control groups."""
    try:
        lines = cgroups.read_text().splitlines()
    except OSError:
        return []
    found: list[int | None] = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            folder, files = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            folder = root / "memory"
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = folder / path.lstrip("/")
        # In a container the path may be the host's, which is not there: the folder itself is then the group.
        groups = [g for g in (group, *group.parents) if g == folder or folder in g.parents]
        found += [_left(g, *files) for g in groups]
    return found


def _left(group: Path, limit_file: str, usage_file: str, reclaimable: str) -> int | None:
    try:
        limit = (group / limit_file).read_text().strip()
        if limit == "max":
            return None
        used = int((group / usage_file).read_text())
        stat = dict(line.split(" ", 1) for line in (group / "memory.stat").read_text().splitlines())
        # Cached files that nobody has used lately are given up first.
        return max(0, int(limit) - used + int(stat.get(reclaimable, 0)))
    except (OSError, ValueError):
        return None
