"""Queue, KV pool and work over time, in a bounded number of points however long the run is."""

from __future__ import annotations

import msgspec

from ..scheduling.request import SchedulerStats

_MOST_POINTS = 600


class Timeline(msgspec.Struct, frozen=True):
    """Columns by point. `busy_share` and tokens per second are of the time since the point before; the others of that moment."""

    seconds: tuple[float, ...] = ()
    running: tuple[float, ...] = ()
    waiting: tuple[float, ...] = ()
    kv_usage: tuple[float, ...] = ()
    busy_share: tuple[float, ...] = ()
    output_tokens_per_second: tuple[float, ...] = ()
    prompt_tokens_per_second: tuple[float, ...] = ()


class TimelineRecorder:
    """Takes a point every so often; the interval doubles, and every other point goes, when there are too many."""

    def __init__(self, interval: float = 0.25) -> None:
        self._interval = interval
        self.due = 0.0
        self._points: list[tuple[float, SchedulerStats, float]] = []

    def take(self, now: float, stats: SchedulerStats, busy_seconds: float) -> None:
        self._points.append((now, stats, busy_seconds))
        if len(self._points) > _MOST_POINTS:
            self._points = self._points[::2]
            self._interval *= 2
        self.due = now + self._interval

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
