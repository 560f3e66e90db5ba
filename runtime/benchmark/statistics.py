"""Summaries of measured durations."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class Summary(msgspec.Struct, frozen=True):
    """Order statistics of a sample; all 0 when it is empty. The unit is the sample's."""

    count: int
    mean: float
    minimum: float
    p50: float
    p90: float
    p99: float
    maximum: float


def summarise(values: Sequence[float]) -> Summary:
    if not values:
        return Summary(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    ordered = sorted(values)
    p50, p90, p99 = (percentile(ordered, share) for share in (0.5, 0.9, 0.99))
    return Summary(len(ordered), sum(ordered) / len(ordered), ordered[0], p50, p90, p99, ordered[-1])


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of an ascending sample lies, linear between neighbours (numpy's default).

    Raises ValueError for an empty sample or a share outside 0 to 1.
    """
    if not ordered or not 0 <= share <= 1:
        raise ValueError("a percentile needs a sample and a share from 0 to 1")
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def ratio(part: float, whole: float) -> float:
    """part / whole; 0 when there is no whole."""
    return part / whole if whole else 0.0
