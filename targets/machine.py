"""What a target is: a named machine as data, and the kernels it offers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ..ir.mlir import ir
from ..plans.program import NATIVE
from ..plans.schema import Rate
from ..plans.weight_layout import Prepack


@dataclass(frozen=True)
class Kernel:
    """One way to run one `ts` operation.

    `function` is the runtime function a plan calls; `refuses` says why the kernel cannot run an operation on a machine (None: it
    can); `efficiency` is the share of the roofline it reaches at a number of rows, with `receipt` saying how that is known.
    It wants the operands `packs` in the layout `prepack`, and can read weights in the layouts `reads`, of block types too where
    `blocks` says so.
    """

    name: str
    operation: str
    function: str
    efficiency: Callable[[int], float]
    receipt: str
    refuses: Callable[[ir.Operation, Machine], str | None] = lambda _operation, _machine: None
    prepack: Prepack = "none"
    packs: tuple[int, ...] = (1,)
    reads: tuple[Prepack, ...] = ("none",)
    blocks: bool = False

    @property
    def native(self) -> bool:
        """Whether it is compiled into the plan."""
        return self.function.startswith(NATIVE)


@dataclass(frozen=True)
class Machine:
    """A compile target. `features` must be present on the host; `rates` has "compute.DTYPE", "bandwidth", "dispatch" (the
    fixed cost of a call through a library) and, with native kernels, "dispatch.native".

    `overhead_bytes` is what interpreter and libraries take; `native_overhead_bytes` where nothing but native kernels runs.
    `compiler_flags` are what a C++ compiler needs to build native kernels for the instruction set; empty: there are none.
    """

    name: str
    kind: str
    description: str
    features: tuple[str, ...]
    rates: dict[str, Rate]
    kernels: tuple[Kernel, ...]
    row_padding: Literal["exact", "bucket"]
    overhead_bytes: int
    native_overhead_bytes: int
    compiler_flags: tuple[str, ...] = ()

    def compute_rate(self, dtype: str) -> Rate:
        return self.rates[f"compute.{dtype}"]

    def dispatch(self, native: bool) -> float:
        """Seconds that a call costs whatever its size."""
        return self.rates["dispatch.native" if native and "dispatch.native" in self.rates else "dispatch"].value
