"""Decode buckets as captured graphs: a whole program becomes one launch."""

from __future__ import annotations

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

    def captured(self, launches: tuple[Launch, ...], where: str) -> tuple[Launch, ...]:
        """One launch in place of all of them, none in place of none."""
        return (self._device.capture(launches, where),) if launches else ()
