"""Decode buckets as captured graphs: a whole program becomes one launch."""

from __future__ import annotations

from collections.abc import Collection
from itertools import groupby

from ...plans.device_kernels import DevicePlan
from ...plans.program import Bucket
from .device import Device, Launch


class CapturedBuckets:
    """Captures the buckets that a plan names. The graphs hold addresses: the arrays they were made for must stay."""

    def __init__(self, device: Device, plan: DevicePlan) -> None:
        self._device, self._rows = device, frozenset(plan.graph_rows)

    def holds(self, bucket: Bucket) -> bool:
        """Whether the bucket is one of decode rows that the plan wants captured."""
        return bucket.rows == bucket.logit_rows and bucket.rows in self._rows

    def captured(self, launches: tuple[Launch, ...], loose: Collection[Launch], where: str) -> tuple[Launch, ...]:
        """The same with a graph in place of each run of launches that are not `loose`, which stay as they are."""
        made: list[Launch] = []
        for is_loose, run in groupby(launches, lambda launch: launch in loose):
            together = tuple(run)
            made += together if is_loose or 1 == len(together) < len(launches) else [self._device.capture(together, where)]
        return tuple(made)
