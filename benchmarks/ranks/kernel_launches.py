"""Kernels of a bundle, ready to run on a device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenspeed.plans.device_kernels import Computed, Constant, DeviceKernel, Pointer, evaluate
from tokenspeed.runtime.device.device import Device, Launch
from tokenspeed.runtime.device.launching import ParameterBlock, Shape, prepared

from ranks.bundle import binary


class KernelLaunches:
    """Makes launches of the kernels in `folder`; each is loaded once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._functions: dict[str, int] = {}

    def launch(self, device: Device, kernel: DeviceKernel, rows: int, operands: Sequence[torch.Tensor | int]) -> Launch:
        """Of `rows` rows; operands are tensors or addresses."""
        symbols = {"rows": rows, "logit_rows": rows}
        values: list[tuple[str, int | float]] = []
        for parameter in kernel.parameters:
            if isinstance(parameter, Pointer):
                operand = operands[parameter.operand]
                values.append(("pointer", operand if isinstance(operand, int) else operand.data_ptr()))
            elif isinstance(parameter, Computed):
                values.append(("i32", evaluate(parameter.size, symbols)))
            elif isinstance(parameter, Constant):
                values.append((parameter.type, parameter.value))
        values += [("pointer", 0)] * 2
        x, y, z = (evaluate(size, symbols) for size in kernel.grid)
        function = self._functions.get(kernel.entry)
        if function is None:
            data = binary(self._folder, kernel)
            function = self._functions[kernel.entry] = device.load_function(data, kernel.symbol, kernel.shared_bytes, kernel.name)
        shape = Shape((x, y, z), kernel.warps * 32, kernel.shared_bytes, kernel.cluster, kernel.dependent_launch)
        return prepared(device, function, shape, ParameterBlock(values), kernel.name)
