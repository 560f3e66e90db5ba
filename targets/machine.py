"""What a target is: a named machine as data, and the kernels it offers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..ir.mlir import ir
from ..plans.device_kernels import DEVICE
from ..plans.program import NATIVE
from ..plans.schema import Rate
from ..plans.weight_layout import Prepack

if TYPE_CHECKING:
    from .triton.kernel import DeviceOperation, DeviceSetting


@dataclass(frozen=True)
class Figure:
    """What was measured of a kernel: the share of the roofline it reached, launch included (None: of its own part no share is
    known), and the receipt."""

    share: float | None
    receipt: str


@dataclass(frozen=True)
class Kernel:
    """One way to run one `ts` operation.

    `function` is the runtime function a plan calls; `refuses` says why the kernel cannot run an operation on a machine (None: it
    can); `efficiency` is the share of the roofline it reaches at a number of rows, with `receipt` saying how that is known.
    `measured` gives what is known of the operation itself on a machine at a number of rows, and goes before `efficiency`.
    It wants the operands `packs` in the layout `prepack`, and can read weights in the layouts `reads`, and the block types
    `blocks`. Of an accelerator's kernel, `device` gives the device functions that it calls for an operation, and
    `function` is `device.` and its name.
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
    blocks: tuple[str, ...] = ()
    device: Callable[[ir.Operation, DeviceSetting], DeviceOperation] | None = None
    measured: Callable[[ir.Operation, Machine, int], Figure | None] = lambda _operation, _machine, _rows: None

    @property
    def native(self) -> bool:
        """Whether it is compiled into the plan."""
        return self.function.startswith((NATIVE, DEVICE))


@dataclass(frozen=True)
class KernelSet:
    """Kernels for every target of a family, and the C++ files that define the native ones among them.

    A file defines kernels as those in targets/cpu/native do: KERNEL(NAME, attributes) and CHECK(NAME); the row's function is then
    `native.NAME`.
    """

    family: str
    kernels: tuple[Kernel, ...]
    sources: tuple[Path, ...] = ()


State = Literal["ran on hardware", "compiled and checked", "data only"]
"""How far a target has come: plans for it ran on such a machine; plans are compiled and their contents checked; no plans yet."""


@dataclass(frozen=True)
class Machine:
    """A compile target. `features` must be present on the host; `rates` has "compute.DTYPE", "bandwidth", "dispatch" (the
    fixed cost of a call through a library) and, with native kernels, "dispatch.native".

    `overhead_bytes` is what interpreter and libraries take; `native_overhead_bytes` where nothing but native kernels runs.
    `compiler_flags` are what a C++ compiler needs to build native kernels for the instruction set; empty: there are none.
    `family` is the key under which kernels are registered for it (KernelSet); `arch` is what code is generated for.
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
    vendor: str = ""
    arch: str = ""
    family: str = ""
    state: State = "data only"

    @property
    def memory_bytes(self) -> int | None:
        """Bytes of the device's own memory; None where a plan uses the host's, whose size is not the target's."""
        return None

    @property
    def peers(self) -> int:
        """Devices that reach each other's memory, this one among them."""
        return 1

    @property
    def most_exchanged(self) -> int:
        """Bytes of the largest message that ranks sum through each other's memory."""
        return 0

    def compute_rate(self, dtype: str) -> Rate:
        return self.rates[f"compute.{dtype}"]

    def dispatch_rate(self, native: bool) -> Rate:
        """What a call costs whatever its size, of a kernel in the plan (`native`) or of a library."""
        return self.rates["dispatch.native" if native and "dispatch.native" in self.rates else "dispatch"]

    def dispatch(self, native: bool) -> float:
        """Seconds that a call costs whatever its size."""
        return self.dispatch_rate(native).value
