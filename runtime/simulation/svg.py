"""Line charts as SVG, drawn here: a report must open anywhere, without network and without scripts.

Colours are the page's (classes `s0`, `s1`, ... of series, `grid`, `title`), so that they follow its light or dark theme.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import escape

_WIDTH, _HEIGHT = 520, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 18, 40, 40
_LETTER = 6.2
"""Width of a letter of 11 pixels, on average and rather too much."""

Show = Callable[[float], str]


def number(value: float) -> str:
    """1500 -> "1.5k"."""
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:g}{unit}"
    return f"{value:.6g}"


@dataclass(frozen=True, slots=True)
class Mark:
    """A point of a line with words beside it."""

    x: float
    y: float
    label: str


@dataclass(frozen=True, slots=True)
class Line:
    """Points in order of x. With `steps` a value holds from the point before to its own, from `start` for the first."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    steps: bool = False
    marks: Sequence[Mark] = ()


@dataclass(frozen=True, slots=True)
class Axis:
    """`logarithmic` leaves out points that are not positive. `ticks` are to be there; else round numbers around the values."""

    label: str
    logarithmic: bool = False
    show: Show = number
    ticks: tuple[float, ...] = ()


def chart(title: str, x: Axis, y: Axis, lines: Sequence[Line]) -> str:
    """An <svg> element; with a note instead of lines where there is nothing to draw."""
    drawn = [(line, _points(line, x, y)) for line in lines]
    points = [point for _, found in drawn for point in found]
    body = [f'<text x="{_LEFT}" y="20" class="title">{escape(title)}</text>']
    if points:
        across = _Scale([point[0] for point in points], x, _LEFT, _WIDTH - _RIGHT)
        up = _Scale([point[1] for point in points] + ([] if y.logarithmic else [0.0]), y, _HEIGHT - _BOTTOM, _TOP)
        body += _grid(across, up, x.show, y.show)
        for place, (line, found) in enumerate(drawn):
            body += _line(place, line, found, across, up)
        if len(lines) > 1:
            body += _legend([line.label for line in lines])
    else:
        body.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT / 2}" text-anchor="middle">nothing to show</text>')
    body.append(f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x.label)}</text>')
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    turned = f'transform="rotate(-90 12 {middle})"'
    body.append(f'<text x="12" y="{middle}" text-anchor="middle" {turned}>{escape(y.label)}</text>')
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(body)}</svg>'


class _Scale:
    """Values to pixels."""

    def __init__(self, values: Sequence[float], axis: Axis, start: float, end: float) -> None:
        low, high = min(values), max(values)
        self.to: Callable[[float], float] = math.log10 if axis.logarithmic else float
        self.ticks = list(axis.ticks) or (_magnitudes(low, high) if axis.logarithmic else _steps(low, high))
        self._low, self._high = self.to(min(low, self.ticks[0])), self.to(max(high, self.ticks[-1]))
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        share = (self.to(value) - self._low) / ((self._high - self._low) or 1)
        return round(self.start + share * (self.end - self.start), 1)


def _points(line: Line, x: Axis, y: Axis) -> list[tuple[float, float]]:
    pairs = list(zip(line.x, line.y, strict=True))
    if line.steps and pairs:
        befores = [0.0, *(across for across, _ in pairs)]
        pairs = [point for before, (across, up) in zip(befores, pairs, strict=False) for point in ((before, up), (across, up))]
    return [(across, up) for across, up in pairs if (across > 0 or not x.logarithmic) and (up > 0 or not y.logarithmic)]


def _magnitudes(low: float, high: float) -> list[float]:
    """Powers of ten around the range; of a short one 1, 2 and 5 times these."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    powers = [10.0**power for power in range(first, max(last, first + 1) + 1)]
    if last - first > 3:
        return powers
    fine = sorted({round(power * factor, 12) for power in powers for factor in (1, 2, 5)})
    below, above = max(tick for tick in fine if tick <= low), min(tick for tick in fine if tick >= high)
    return [tick for tick in fine if below <= tick <= max(above, fine[fine.index(below) + 1])]


def _steps(low: float, high: float) -> list[float]:
    """Four to eight round numbers around the range."""
    span = (high - low) or abs(high) or 1.0
    size = 10 ** math.floor(math.log10(span / 4))
    size = next(size * factor for factor in (1, 2, 2.5, 5, 10) if span / (size * factor) <= 6)
    first, last = math.floor(low / size), math.ceil(high / size - 1e-9)
    return [place * size for place in range(first, max(last, first + 1) + 1)]


def _grid(across: _Scale, up: _Scale, show_x: Show, show_y: Show) -> list[str]:
    parts = []
    for tick in across.ticks:
        at = across(tick)
        parts.append(f'<line x1="{at}" y1="{up.start}" x2="{at}" y2="{up.end}" class="grid"/>')
        parts.append(f'<text x="{at}" y="{up.start + 17}" text-anchor="middle">{escape(show_x(tick))}</text>')
    for tick in up.ticks:
        at = up(tick)
        parts.append(f'<line x1="{across.start}" y1="{at}" x2="{across.end}" y2="{at}" class="grid"/>')
        parts.append(f'<text x="{across.start - 6}" y="{at + 4}" text-anchor="end">{escape(show_y(tick))}</text>')
    return parts


def _line(place: int, line: Line, points: Sequence[tuple[float, float]], across: _Scale, up: _Scale) -> list[str]:
    path = " ".join(f"{across(x)},{up(y)}" for x, y in points)
    parts = []
    if line.steps and points:
        begin, end = across(points[0][0]), across(points[-1][0])
        parts.append(f'<polygon points="{begin},{up.start} {path} {end},{up.start}" class="area s{place}"/>')
    parts.append(f'<polyline points="{path}" class="line s{place}"/>')
    for mark in line.marks:
        x, y = across(mark.x), up(mark.y)
        parts.append(f'<circle cx="{x}" cy="{y}" r="3.5" class="dot s{place}"/>')
        right = x + 9 + _LETTER * len(mark.label) < _WIDTH
        at = f'x="{x + 8}" y="{y + 13}"' if right else f'x="{x - 8}" y="{y - 3}" text-anchor="end"'
        parts.append(f'<text {at} class="mark">{escape(mark.label)}</text>')
    return parts


def _legend(labels: Sequence[str]) -> list[str]:
    """Beside the title, from the right."""
    parts, end = [], float(_WIDTH - _RIGHT)
    for place, label in reversed(list(enumerate(labels))):
        begin = end - _LETTER * len(label)
        parts.append(f'<text x="{end:.0f}" y="20" text-anchor="end">{escape(label)}</text>')
        parts.append(f'<line x1="{begin - 20:.0f}" y1="16" x2="{begin - 5:.0f}" y2="16" class="line s{place}"/>')
        end = begin - 34
    return parts
