"""Benchmark rows in a roofline plot: how near each test comes to what memory and integer units allow. Plain SVG: dots
with numbers, and beside the plot what each number is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from sterna.bench_rows import Row
from sterna.errors import ArgumentError

_WIDTH, _MIN_HEIGHT = 1080, 600
_LEFT, _KEY, _TOP, _BOTTOM = 84, 330, 64, 64
_TEXT, _MUTED, _GRID, _ROOF, _UNDER = "#1f2933", "#5f6b7a", "#e4e8ee", "#3d4957", "#f3f6fa"
# Okabe and Ito's colours, told apart by people who see few.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_CHARACTER = 7.5  # width of a digit at 12 px, with room
_LINE = 13.0
_KEY_LINE = 19.0


@dataclass(frozen=True)
class _Roof:
    """One machine's limits: bytes and multiply-accumulates per second."""

    name: str
    bandwidth: float
    peak: float

    @property
    def ridge(self) -> float:
        """Multiply-accumulates per byte from which on the integer units are the limit."""
        return self.peak / self.bandwidth

    @property
    def text(self) -> str:
        return f"{self.name}: {self.bandwidth / 1e9:.1f} GB/s, {self.peak / 1e9:.0f} GMAC/s"

    def at(self, intensity: float) -> float:
        """The most that is possible, multiply-accumulates per second."""
        return min(self.peak, self.bandwidth * intensity)


@dataclass(frozen=True)
class _Dot:
    """One row: multiply-accumulates per byte, and per second."""

    intensity: float
    speed: float
    label: str
    color: str


@dataclass(frozen=True)
class _Axis:
    """A logarithmic axis: values low..high on pixels begin..end."""

    low: float
    high: float
    begin: float
    end: float

    def __call__(self, value: float) -> float:
        return self.begin + (self.end - self.begin) * math.log(value / self.low) / math.log(self.high / self.low)

    def ticks(self, base: int) -> list[float]:
        """Powers of `base` within."""
        first = math.ceil(math.log(self.low, base) - 1e-9)
        last = math.floor(math.log(self.high, base) + 1e-9)
        return [float(base) ** power for power in range(first, last + 1)]


def roofline(rows: Sequence[Row]) -> str:
    """The plot as SVG text; rows without limits (saved by older versions) are left out. ArgumentError if none is left.

    x: multiply-accumulates per byte read; y: multiply-accumulates per second, in units of 10^9; both logarithmic.
    """
    rows = [row for row in rows if "share" in row]
    if not rows:
        raise ArgumentError("no row to plot says what the machine can do")
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(f"{row['model']}, {_setup(row)}", []).append(row)
    colors = {group: _COLORS[i % len(_COLORS)] for i, group in enumerate(groups)}
    numbers = {id(row): i for i, row in enumerate((row for group in groups.values() for row in group), start=1)}
    dots = [_dot(row, str(numbers[id(row)]), colors[group]) for group in groups for row in groups[group]]

    roofs = _roofs(rows)
    height = max(_MIN_HEIGHT, _TOP + _BOTTOM + _KEY_LINE * (len(rows) + 1.6 * len(groups)))
    x_values = [dot.intensity for dot in dots] + [roof.ridge for roof in roofs]
    x = _Axis(min(x_values) / 2, max(x_values) * 3, _LEFT, _WIDTH - _KEY)
    y_values = [dot.speed for dot in dots] + [roof.peak for roof in roofs]
    y = _Axis(min([*y_values, *(roof.at(x.low) for roof in roofs)]) / 1.5, max(y_values) * 1.8, height - _BOTTOM, _TOP)

    parts = [_text(_LEFT, 34, "Speed beside the machine's limits", fill=_TEXT, font_size=16, font_weight="bold")]
    parts += [*_frame(x, y), *_draw_roofs(roofs, x, y), *_draw_dots(dots, roofs, x, y)]
    parts += _key(groups, colors, numbers)
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" width="{_WIDTH}" '
        f'height="{height:.0f}" font-family="Helvetica, Arial, sans-serif" font-size="12">\n'
        f'<rect width="{_WIDTH}" height="{height:.0f}" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


def _setup(row: Row) -> str:
    return f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}, {row['isa']}"


def _roofs(rows: Iterable[Row]) -> list[_Roof]:
    """One for each number of threads and instruction set, lowest first."""
    found: dict[str, _Roof] = {}
    for row in rows:
        name = _setup(row)
        old = found.get(name, _Roof(name, 0.0, 0.0))
        bandwidth, peak = row["machine_bytes_per_second"], row["machine_macs_per_second"]
        found[name] = _Roof(name, max(old.bandwidth, bandwidth), max(old.peak, peak))
    return sorted(found.values(), key=lambda roof: roof.peak)


def _dot(row: Row, label: str, color: str) -> _Dot:
    macs = row["work_macs_per_token"]
    return _Dot(macs / row["work_bytes_per_token"], row["tokens_per_second"] * macs, label, color)


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _text(x: float, y: float, text: str, **attributes: Any) -> str:
    attributes.setdefault("fill", _MUTED)
    names = " ".join(f'{name.replace("_", "-")}="{value}"' for name, value in attributes.items())
    shown = "".join(character for character in text if character.isprintable())  # XML allows no control characters
    return f'<text x="{x:.1f}" y="{y:.1f}" {names}>{escape(shown)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, color: str, width: float) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{color}" stroke-width="{width}" fill="none"/>'


def _circle(x: float, y: float, color: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{color}" stroke="#ffffff" stroke-width="1.5"/>'


def _frame(x: _Axis, y: _Axis) -> list[str]:
    """Grid, ticks and the names of the axes."""
    parts = []
    base = 10 if x.high / x.low > 1000 else 2
    for tick in x.ticks(base):
        parts.append(_line(x(tick), y.begin, x(tick), y.end, _GRID, 1))
        parts.append(_text(x(tick), y.begin + 20, f"{tick:g}", text_anchor="middle"))
    for tick in y.ticks(10):
        parts.append(_line(x.begin, y(tick), x.end, y(tick), _GRID, 1))
        parts.append(_text(x.begin - 10, y(tick) + 4, f"{tick / 1e9:g}", text_anchor="end"))
    middle = (y.begin + y.end) / 2
    parts.append(_text((x.begin + x.end) / 2, y.begin + 46, "multiply-accumulates per byte read", text_anchor="middle"))
    turn = f"rotate(-90 24 {middle:.1f})"
    parts.append(_text(24, middle, "GMAC/s", text_anchor="middle", transform=turn))
    return parts


def _draw_roofs(roofs: Sequence[_Roof], x: _Axis, y: _Axis) -> list[str]:
    parts = []
    top = roofs[-1]
    corners = [(x.low, top.at(x.low)), (top.ridge, top.peak), (x.high, top.peak)]
    edge = " ".join(f"{x(intensity):.1f},{y(speed):.1f}" for intensity, speed in corners)
    under = f"{x.end:.1f},{y.begin:.1f} {x.begin:.1f},{y.begin:.1f}"
    parts.append(f'<polygon points="{edge} {under}" fill="{_UNDER}" opacity="0.7"/>')
    for roof in roofs:
        ridge_x, ridge_y = x(roof.ridge), y(roof.peak)
        begin_y = y(roof.at(x.low))
        parts.append(_line(x.begin, begin_y, ridge_x, ridge_y, _ROOF, 1.6))
        parts.append(_line(ridge_x, ridge_y, x.end, ridge_y, _ROOF, 1.6))
        parts.append(_text(x.end - 6, ridge_y - 8, roof.text, text_anchor="end", fill=_TEXT))
    return parts


@dataclass(frozen=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: _Box) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


def _draw_dots(dots: Sequence[_Dot], roofs: Sequence[_Roof], x: _Axis, y: _Axis) -> list[str]:
    """Dots with their numbers beside them, out of each other's way and off the roofs."""
    parts = []
    taken = [_Box(x(dot.intensity) - 6, y(dot.speed) - 6, x(dot.intensity) + 6, y(dot.speed) + 6) for dot in dots]
    for roof in roofs:
        for i in range(100):
            at = x.low * (x.high / x.low) ** (i / 100)
            taken.append(_Box(x(at) - 3, y(roof.at(at)) - 3, x(at) + 3, y(roof.at(at)) + 3))
        width = _CHARACTER * len(roof.text)
        taken.append(_Box(x.end - 6 - width, y(roof.peak) - 22, x.end, y(roof.peak)))
    for dot in sorted(dots, key=lambda dot: -dot.speed):
        at_x, at_y = x(dot.intensity), y(dot.speed)
        box = _place(at_x, at_y, _CHARACTER * len(dot.label), taken, x, y)
        leader = _leader(at_x, at_y, box)
        taken += [box, *leader]
        middle = (box.top + box.bottom) / 2
        if leader:
            parts.append(_line(at_x, at_y, _near(at_x, box), middle, dot.color, 0.8))
        parts.append(_circle(at_x, at_y, dot.color))
        anchor = "start" if box.left > at_x else "end"
        parts.append(_text(_near(at_x, box), middle + 4, dot.label, fill=_TEXT, text_anchor=anchor))
    return parts


def _near(at_x: float, box: _Box) -> float:
    """The side of a label that its dot is on."""
    return box.left if box.left > at_x else box.right


def _leader(at_x: float, at_y: float, box: _Box) -> list[_Box]:
    """Small boxes along the line from a dot to a label that is not right beside it."""
    down, across = (box.top + box.bottom) / 2 - at_y, _near(at_x, box) - at_x
    if abs(down) < _LINE:
        return []
    points = [(at_x + across * i / 20, at_y + down * i / 20) for i in range(4, 20)]
    return [_Box(left - 1, top - 1, left + 1, top + 1) for left, top in points]


def _place(at_x: float, at_y: float, width: float, taken: Sequence[_Box], x: _Axis, y: _Axis) -> _Box:
    """A free place for a label: right of the dot, left of it, and then ever farther below and above."""
    fallback = None
    for step in range(20):
        for down in (step, -step) if step else (0,):
            for left in (at_x + 11, at_x - 11 - width):
                middle = at_y + down * _LINE
                box = _Box(left, middle - _LINE / 2, left + width, middle + _LINE / 2)
                if box.left < x.begin or box.right > x.end or box.top < y.end or box.bottom > y.begin:
                    continue
                fallback = fallback or box
                wanted = [box, *_leader(at_x, at_y, box)]
                if not any(each.meets(other) for each in wanted for other in taken):
                    return box
    return fallback or _Box(at_x + 11, at_y - _LINE / 2, at_x + 11 + width, at_y + _LINE / 2)


def _key(groups: dict[str, list[Row]], colors: dict[str, str], numbers: dict[int, int]) -> list[str]:
    """What each number stands for: test, speed, and share of the nearer limit."""
    parts = []
    left, at = _WIDTH - _KEY + 36, float(_TOP + 6)
    for group, rows in groups.items():
        shown = group if len(group) <= 34 else f"{group[: 31 - len(_setup(rows[0]))]}..., {_setup(rows[0])}"
        parts.append(_circle(left, at - 4, colors[group]))
        parts.append(_text(left + 14, at, shown, fill=_TEXT, font_weight="bold"))
        for row in rows:
            at += _KEY_LINE
            parts.append(_text(left + 4, at, str(numbers[id(row)]), text_anchor="end"))
            parts.append(_text(left + 14, at, row["test"], fill=_TEXT))
            parts.append(
                _text(left + 178, at, f"{_number(row['tokens_per_second'])} t/s", fill=_TEXT, text_anchor="end")
            )
            parts.append(_text(left + 274, at, f"{100 * row['share']:.0f} % {row['limit']}", text_anchor="end"))
        at += 1.6 * _KEY_LINE
    return parts
