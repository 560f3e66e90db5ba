"""A plan's device kernels: loaded once, prepared once for each call and bucket, what their code relies on checked then."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

from ...plans.device_integrity import check_binary
from ...plans.device_kernels import (
    DEVICE,
    Computed,
    Constant,
    DeviceFunction,
    DeviceKernel,
    DevicePlan,
    Parameter,
    Pointer,
    evaluate,
)
from ...plans.device_limits import LIMITS
from ...plans.device_scratch import blocks_of, scratch_bytes
from ...plans.errors import PlanError
from .arrays import DeviceArray
from .device import Device, Launch
from .launching import ParameterBlock, Shape, prepared

Binary = Callable[[str], bytes | memoryview]
"""The bytes of an entry of the plan, its digest checked."""


class DeviceKernels:
    """Loads every kernel of a plan; `prepare` binds one to its operands. `scratch` is the address of shared scratch memory."""

    def __init__(self, device: Device, plan: DevicePlan, binary: Binary, scratch: int) -> None:
        self._device, self._scratch = device, scratch
        self._warp_size = LIMITS[plan.architecture].warp_size
        self._functions = {function.name: function for function in plan.functions}
        self._kernels = {kernel.name: kernel for kernel in plan.kernels}
        self._handles: dict[str, int] = {}
        for kernel in plan.kernels:
            data = binary(kernel.entry)
            check_binary(kernel, plan.vendor, data)
            where = f"kernel {kernel.name} ({kernel.entry})"
            self._handles[kernel.name] = device.load_function(data, kernel.symbol, kernel.shared_bytes, where)

    def decoding_only(self, function: str) -> bool:
        """Whether a function does the rows of decoding sequences alone."""
        declared = self._functions.get(function.removeprefix(DEVICE))
        return declared is not None and declared.decoding_only

    def by_logit_rows(self, function: str) -> bool:
        """Whether a function does the rows that want logits alone."""
        declared = self._functions.get(function.removeprefix(DEVICE))
        return declared is not None and declared.by == "logit_rows"

    def prepare(
        self, function: str, symbols: Mapping[str, int], operands: Sequence[DeviceArray], label: str, stream: int | None = None
    ) -> tuple[Launch, ...]:
        """The launches of a call in a bucket (none where its grid is empty): operands are inputs, then outputs. They go through
        the device's stream, unless another is given.

        Raises PlanError when the call is not one of a device function, or an operand is not as the code relies on.
        """
        declared = self._functions.get(function.removeprefix(DEVICE))
        variant = declared.variant_for(symbols) if declared is not None else None
        if declared is None or variant is None:
            raise _refusal(label or function, "a device function of the plan for this bucket", f"{function}, {dict(symbols)}")
        if variant.kernel is None:
            return ()
        name = variant.kernel
        kernel, where = self._kernels[name], f"{label or function}, kernel {name}"
        _check_types(declared, operands, where)
        blocks = blocks_of(kernel, symbols)
        values = [_value(parameter, symbols, operands, where) for parameter in kernel.parameters]
        values += [("pointer", address) for address in self._scratch_addresses(kernel, prod(blocks))]
        if not prod(blocks):
            return ()
        shape = Shape(blocks, kernel.warps * self._warp_size, kernel.shared_bytes, kernel.cluster, kernel.dependent_launch)
        return (prepared(self._device, self._handles[name], shape, ParameterBlock(values), where, stream),)

    def _scratch_addresses(self, kernel: DeviceKernel, blocks: int) -> tuple[int, int]:
        """Where the global and the profile scratch of a launch begin; 0 where it wants none."""
        first, second = kernel.global_scratch, kernel.profile_scratch
        after = self._scratch + scratch_bytes(first, blocks)
        return (
            _aligned(self._scratch, first.alignment) if first.bytes else 0,
            _aligned(after, second.alignment) if second.bytes else 0,
        )


def _aligned(address: int, alignment: int) -> int:
    return -(-address // alignment) * alignment


def _check_types(function: DeviceFunction, operands: Sequence[DeviceArray], where: str) -> None:
    expected, got = (*function.inputs, *function.outputs), tuple(operand.dtype for operand in operands)
    if expected != got:
        raise _refusal(where, f"operands of {list(expected)}", str(list(got)))


def _value(
    parameter: Parameter, symbols: Mapping[str, int], operands: Sequence[DeviceArray], where: str
) -> tuple[str, int | float]:
    """(kind, value) of a parameter; the promises that the code was compiled with are kept, or the plan is refused."""
    if isinstance(parameter, Pointer):
        address = operands[parameter.operand].address
        if address % parameter.alignment:
            expected = f"operand {parameter.operand} at a multiple of {parameter.alignment} bytes"
            raise _refusal(where, expected, f"{address % parameter.alignment} bytes after one")
        return "pointer", address
    if isinstance(parameter, Computed):
        value = evaluate(parameter.size, symbols)
        if value % parameter.divisor:
            raise _refusal(where, f"a number divisible by {parameter.divisor}", str(value))
        return "i32", value
    assert isinstance(parameter, Constant)
    return parameter.type, parameter.value


def _refusal(where: str, expected: str, got: str) -> PlanError:
    return PlanError(
        "The plan launches a device kernel in a way it cannot run.",
        where=where,
        expected=expected,
        got=got,
        fix="compile the plan again with tokenspeed-compile",
    )
