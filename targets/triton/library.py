"""The kernels that accelerators offer: one row for each operation."""

from __future__ import annotations

from collections.abc import Callable

from ...ir.mlir import ir
from ...plans.device_kernels import DEVICE
from ..machine import Kernel
from .kernel import DeviceOperation, DeviceSetting
from .linear import linear
from .norms import add_rms_norm, rms_norm


def _row(operation: str, device: Callable[[ir.Operation, DeviceSetting], DeviceOperation], efficiency: float = 0.8) -> Kernel:
    name = operation.removeprefix("ts.")
    return Kernel(
        name=f"triton.{name}",
        operation=operation,
        function=f"{DEVICE}{name}",
        efficiency=lambda _rows: efficiency,
        receipt="set, not measured",
        device=device,
    )


TRITON_KERNELS: tuple[Kernel, ...] = (
    _row("ts.rms_norm", rms_norm),
    _row("ts.add_rms_norm", add_rms_norm),
    _row("ts.linear", linear),
)
