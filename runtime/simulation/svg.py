"""Line charts as SVG, drawn here: a report must open anywhere, without network and without scripts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import escape

_WIDTH, _HEIGHT = 460, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 30, 40
_COLOURS = ("#1f5fa8", "#c4561c", "#3a8f4d", "#8a3a8f", "#7a6a1c", "#555555")


@dataclass(frozen=True, slots=True)
class Line:
    """One line: points in order of x."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True, slots=True)
class Axis:
    """`logarithmic` leaves out points that are not positive."""

    label: str
    logarithmic: bool = False


def chart(title: str, x: Axis, y: Axis, lines: Sequence[Line]) -> str:
    """An <svg> element; with a note instead of lines where there is nothing to draw."""
    drawn = [(line, _points(line, x, y)) for line in lines]
    points = [point for _, found in drawn for point in found]
    body = [f'<text x="{_LEFT}" y="16" class="title">{escape(title)}</text>']
    if points:
        across = _Scale([point[0] for point in points], x.logarithmic, _LEFT, _WIDTH - _RIGHT)
        up = _Scale([point[1] for point in points] + ([] if y.logarithmic else [0.0]), y.logarithmic, _HEIGHT - _BOTTOM, _TOP)
        body += _grid(across, up)
        for number, (line, found) in enumerate(drawn):
            body += _line(number, line.label if len(lines) > 1 else "", found, across, up)
    else:
        body.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT / 2}" text-anchor="middle">nothing to show</text>')
    body.append(f'<text x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x.label)}</text>')
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    turned = f'transform="rotate(-90 12 {middle})"'
    body.append(f'<text x="12" y="{middle}" text-anchor="middle" {turned}>{escape(y.label)}</text>')
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(body)}</svg>'


class _Scale:
    """Values to pixels."""

    def __init__(self, values: Sequence[float], logarithmic: bool, start: float, end: float) -> None:
        low, high = min(values), max(values)
        self.to: Callable[[float], float] = math.log10 if logarithmic else float
        self.ticks = _decades(low, high) if logarithmic else _steps(low, high)
        self._low, self._high = self.to(min(low, self.ticks[0])), self.to(max(high, self.ticks[-1]))
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        share = (self.to(value) - self._low) / ((self._high - self._low) or 1)
        return round(self.start + share * (self.end - self.start), 1)


def _points(line: Line, x: Axis, y: Axis) -> list[tuple[float, float]]:
    return [
        (across, up)
        for across, up in zip(line.x, line.y, strict=True)
        if (across > 0 or not x.logarithmic) and (up > 0 or not y.logarithmic)
    ]


def _decades(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [10.0**power for power in range(first, max(last, first + 1) + 1)]


def _steps(low: float, high: float) -> list[float]:
    """Four to eight round numbers around the range."""
    span = (high - low) or abs(high) or 1.0
    size = 10 ** math.floor(math.log10(span / 4))
    size = next(size * factor for factor in (1, 2, 2.5, 5, 10) if span / (size * factor) <= 6)
    first, last = math.floor(low / size), math.ceil(high / size - 1e-9)
    return [number * size for number in range(first, max(last, first + 1) + 1)]


def _grid(across: _Scale, up: _Scale) -> list[str]:
    parts = []
    for tick in across.ticks:
        at = across(tick)
        parts.append(f'<line x1="{at}" y1="{up.start}" x2="{at}" y2="{up.end}" class="grid"/>')
        parts.append(f'<text x="{at}" y="{up.start + 14}" text-anchor="middle">{_number(tick)}</text>')
    for tick in up.ticks:
        at = up(tick)
        parts.append(f'<line x1="{across.start}" y1="{at}" x2="{across.end}" y2="{at}" class="grid"/>')
        parts.append(f'<text x="{across.start - 5}" y="{at + 4}" text-anchor="end">{_number(tick)}</text>')
    return parts


def _line(number: int, label: str, points: Sequence[tuple[float, float]], across: _Scale, up: _Scale) -> list[str]:
    colour = _COLOURS[number % len(_COLOURS)]
    path = " ".join(f"{across(x)},{up(y)}" for x, y in points)
    parts = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>']
    if label:
        at = across.end - 4, _TOP + 12 + 14 * number
        parts.append(f'<text x="{at[0]}" y="{at[1]}" text-anchor="end" fill="{colour}">{escape(label)}</text>')
    return parts


def _number(value: float) -> str:
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:g}{unit}"
    return f"{value:.6g}"
