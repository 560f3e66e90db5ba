"""Numbers at which predictions come nearest to what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import exp, log

_FAR = 0.1
_WIDEST, _NARROWEST = 0.5, 1e-3


def distance(pairs: Iterable[tuple[float, float]]) -> float:
    """Of what was predicted from what was measured: the sum of ln(predicted / measured) ** 2, in which what is further off than a
    tenth counts as its distance alone, so that no single measurement leads."""
    errors = (abs(log(predicted / measured)) for predicted, measured in pairs)
    return sum(error**2 if error < _FAR else _FAR * (2 * error - _FAR) for error in errors)


def fitted(
    start: Mapping[str, float], bounds: Mapping[str, tuple[float, float]], far: Callable[[Mapping[str, float]], float]
) -> dict[str, float]:
    """The numbers, within `bounds`, for which `far` is least: one after another goes up or down by ever smaller parts of itself,
    as long as that helps."""
    numbers, width = dict(start), _WIDEST
    least = far(numbers)
    while width > _NARROWEST:
        better = False
        for name, (low, high) in bounds.items():
            for by in (exp(width), exp(-width)):
                tried = numbers | {name: min(high, max(low, numbers[name] * by))}
                found = far(tried)
                if found < least:
                    numbers, least, better = tried, found, True
        width = width if better else width / 2
    return numbers
