"""Queue, KV pool and work over time, in a bounded number of points however long the run is."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..scheduling.request import SchedulerStats
from .turns import TurnRecord

_MOST_POINTS = 600
_BINS = 150


class Timeline(msgspec.Struct, frozen=True):
    """Columns by point. `busy_share` and tokens per second are of the time since the point before; the others of that moment.

    Of a measured run all are of the time since the point before, as clients saw it: turns `waiting` have no token yet, those
    `running` have one; and what only the server knows is empty.
    """

    seconds: tuple[float, ...] = ()
    running: tuple[float, ...] = ()
    waiting: tuple[float, ...] = ()
    kv_usage: tuple[float, ...] = ()
    busy_share: tuple[float, ...] = ()
    output_tokens_per_second: tuple[float, ...] = ()
    prompt_tokens_per_second: tuple[float, ...] = ()


class TimelineRecorder:
    """Takes a point every so often; when there are too many the interval doubles, and of points closer than that the last one
    stays, so that what holds through a pause is what was true when it began."""

    def __init__(self, interval: float = 0.25) -> None:
        self.interval = interval
        self.due = 0.0
        self._points: list[tuple[float, SchedulerStats, float]] = []

    def take(self, now: float, stats: SchedulerStats, busy_seconds: float) -> None:
        self._points.append((now, stats, busy_seconds))
        while len(self._points) > _MOST_POINTS:
            self.interval *= 2
            kept = self._points[:1]
            for point in self._points[1:]:
                if len(kept) > 1 and point[0] - kept[-2][0] < self.interval:
                    kept[-1] = point
                else:
                    kept.append(point)
            self._points = kept
        self.due = now + self.interval

    def timeline(self) -> Timeline:
        columns: dict[str, list[float]] = {name: [] for name in Timeline.__struct_fields__}
        for (start, before, busy_before), (now, stats, busy) in zip(self._points, self._points[1:], strict=False):
            span = now - start
            if span <= 0:
                continue
            columns["seconds"].append(now)
            columns["running"].append(stats.running)
            columns["waiting"].append(stats.waiting)
            columns["kv_usage"].append(stats.kv_usage)
            columns["busy_share"].append(min(1.0, (busy - busy_before) / span))
            columns["output_tokens_per_second"].append((stats.generation_tokens - before.generation_tokens) / span)
            columns["prompt_tokens_per_second"].append((stats.prompt_tokens - before.prompt_tokens) / span)
        return Timeline(**{name: tuple(values) for name, values in columns.items()})


def as_clients_saw_it(records: Sequence[TurnRecord], seconds: float) -> Timeline:
    """Of a measured run that took so long."""
    done = [record for record in records if record.token_seconds]
    if not done or seconds <= 0:
        return Timeline()
    edges = np.linspace(0.0, seconds, _BINS + 1)
    width = seconds / _BINS
    arrivals, firsts, lasts = (
        np.array(values)
        for values in zip(*((r.arrival_seconds, r.token_seconds[0], r.token_seconds[-1]) for r in done), strict=True)
    )
    tokens = np.concatenate([record.token_seconds for record in done])
    outputs, _ = np.histogram(tokens, edges)
    prompts, _ = np.histogram(arrivals, edges, weights=[record.prompt_tokens for record in done])
    return Timeline(
        seconds=tuple(edges[1:].tolist()),
        running=_number(firsts, lasts, edges),
        waiting=_number(arrivals, firsts, edges),
        output_tokens_per_second=tuple((outputs / width).tolist()),
        prompt_tokens_per_second=tuple((prompts / width).tolist()),
    )


def in_bins(timeline: Timeline) -> Timeline:
    """At even times and few enough to be drawn; all columns are means of the time since the point before."""
    times = np.array(timeline.seconds)
    if len(times) <= _BINS:
        return timeline
    starts, edges = np.concatenate([[0.0], times[:-1]]), np.linspace(0.0, times[-1], _BINS + 1)
    columns: dict[str, tuple[float, ...]] = {"seconds": tuple(edges[1:].tolist())}
    for name in Timeline.__struct_fields__[1:]:
        values = np.array(getattr(timeline, name))
        if not len(values):
            continue
        if name in ("running", "waiting", "kv_usage"):  # from this point to the next
            values = np.concatenate([values[:1], values[:-1]])
        area = np.concatenate([[0.0], np.cumsum(values * (times - starts))])
        columns[name] = tuple((np.diff(np.interp(edges, [0.0, *times], area)) / np.diff(edges)).tolist())
    return Timeline(**columns)


def _number(begins: NDArray[np.float64], ends: NDArray[np.float64], edges: NDArray[np.float64]) -> tuple[float, ...]:
    """How many of these spans there are at a time, the mean of each bin."""
    passed = np.array([np.clip(edge - begins, 0.0, ends - begins).sum() for edge in edges])
    return tuple((np.diff(passed) / np.diff(edges)).tolist())
