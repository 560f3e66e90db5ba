"""How long an operation takes at best on a target: the larger of what arithmetic and what memory allow, and the launch.

The roofline model (Williams, Waterman and Patterson, 2009). One rule for CPUs and accelerators: they differ in their figures.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from .cost import Cost
from .machine import Machine

RATE_OF_DTYPE = {"i8": "int8", "u8": "int8"}
"""Element types whose arithmetic goes by another name among a target's rates."""


@dataclass(frozen=True)
class Roofline:
    """Seconds that arithmetic, memory traffic and the launch of an operation take on a target, each alone."""

    compute: float
    bandwidth: float
    dispatch: float

    @property
    def limit(self) -> float:
        """Seconds below which no kernel comes: arithmetic and traffic overlap."""
        return max(self.compute, self.bandwidth)

    @property
    def bound(self) -> Literal["bandwidth", "compute", "dispatch"]:
        """What takes longest."""
        if self.dispatch > self.limit:
            return "dispatch"
        return "compute" if self.compute > self.bandwidth else "bandwidth"

    def seconds(self, efficiency: float) -> float:
        """Expected seconds of a kernel that reaches a share `efficiency` of the roofline, its launch included."""
        return self.limit / efficiency + self.dispatch


def roofline(cost: Cost, machine: Machine, dtypes: Iterable[str], native: bool) -> Roofline:
    """The bounds of an operation of this cost on `machine`.

    It computes in the first of `dtypes` that the machine has a rate for, else in f32. `native`: by a kernel in the plan.
    """
    names = (RATE_OF_DTYPE.get(dtype, dtype) for dtype in dtypes)
    dtype = next((name for name in names if f"compute.{name}" in machine.rates), "f32")
    compute, bandwidth = machine.compute_rate(dtype).value, machine.rates["bandwidth"].value
    return Roofline(cost.flops / compute, cost.bytes / bandwidth, machine.dispatch(native))
