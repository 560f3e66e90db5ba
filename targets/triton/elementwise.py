"""Templates of functions of each element."""

from __future__ import annotations

from ...ir import module as modules
from ...ir.mlir import ir
from ...plans.device_kernels import Symbol
from .kernel import Constexpr, DeviceOperation, DeviceSetting, Launch
from .operand import Layout
from .templates import heads_and_width, layouts, number, one_launch, pointers, rows_of
from .tiles import power_of_two_above, waits_for_inputs

_BLOCK = 1024
_WARPS = 4


def add(operation: ir.Operation, setting: DeviceSetting) -> DeviceOperation:
    """ts.add: (a, b) -> a + b."""
    return _of_two("add", "add", operation, setting)


def mul(operation: ir.Operation, setting: DeviceSetting) -> DeviceOperation:
    """ts.mul: (a, b) -> a * b."""
    return _of_two("mul", "mul", operation, setting)


def gated_activation(operation: ir.Operation, setting: DeviceSetting) -> DeviceOperation:
    """ts.gated_activation: (gate, up) -> activation(gate) * up."""
    return _of_two("gated_activation", modules.text_attribute(operation, "activation"), operation, setting)


def activation(operation: ir.Operation, setting: DeviceSetting) -> DeviceOperation:
    """ts.activation: (x) -> activation(x)."""
    return _of_operation("activation", modules.text_attribute(operation, "kind"), 0.0, operation, setting)


def scale(operation: ir.Operation, setting: DeviceSetting) -> DeviceOperation:
    """ts.scale: (a) -> a * factor."""
    return _of_operation("scale", "scale", number(operation, "factor"), operation, setting)


def softcap(operation: ir.Operation, setting: DeviceSetting) -> DeviceOperation:
    """ts.softcap: (x) -> cap * tanh(x / cap)."""
    return _of_operation("softcap", "softcap", number(operation, "cap"), operation, setting)


def cast(operation: ir.Operation, setting: DeviceSetting) -> DeviceOperation:
    """ts.cast: (a) -> a in another type."""
    return _of_operation("copy", "copy", 0.0, operation, setting)


def copy(source: Layout, target: Layout, setting: DeviceSetting, by: Symbol = "rows") -> DeviceOperation:
    """(a) -> a, dense, converted to the output's type: what lowering adds where an array is needed elsewhere."""
    return _of_one("copy", "copy", 0.0, source, target, setting, by)


def _of_operation(stem: str, kind: str, value: float, operation: ir.Operation, setting: DeviceSetting) -> DeviceOperation:
    (a,), (out,) = layouts(operation)
    return _of_one(stem, kind, value, a, out, setting, rows_of(operation))


def _of_one(stem: str, kind: str, value: float, a: Layout, out: Layout, setting: DeviceSetting, by: Symbol) -> DeviceOperation:
    heads, columns, step = heads_and_width(a)
    constants: dict[str, Constexpr] = {"HEADS": heads, "N": columns, "A_ROW": a.row_stride, "A_HEAD": step}
    constants |= {"KIND": kind, "NUMBER": value}
    return _launched(stem, "map_one", constants, (a,), out, setting, by)


def _of_two(stem: str, kind: str, operation: ir.Operation, setting: DeviceSetting) -> DeviceOperation:
    (a, b), (out,) = layouts(operation)
    apart = any(heads_and_width(layout)[0] > 1 for layout in (a, b))
    heads, columns = (out.shape[1] or 1, out.shape[2] or 1) if apart else (1, out.columns)
    strides = [layout.strides[1] if apart else 0 for layout in (a, b)]
    constants: dict[str, Constexpr] = {"HEADS": heads, "N": columns, "A_ROW": a.row_stride, "A_HEAD": strides[0]}
    constants |= {"B_ROW": b.row_stride, "B_HEAD": strides[1], "KIND": kind}
    return _launched(stem, "map_two", constants, (a, b), out, setting, rows_of(operation))


def _launched(
    stem: str,
    source: str,
    constants: dict[str, Constexpr],
    inputs: tuple[Layout, ...],
    out: Layout,
    setting: DeviceSetting,
    by: Symbol,
) -> DeviceOperation:
    block, dependent = min(_BLOCK, power_of_two_above(out.columns)), waits_for_inputs(setting.accelerator)
    constants |= {"BLOCK": block, "DEPENDENT": dependent}
    # what is made of weights alone has no rows: its first dimension stands in for them
    rows = by if None in out.shape else (*out.shape, 1)[0] or 1
    grid = (rows, -(-out.columns // block), 1)
    parameters = tuple(pointers((*inputs, out)))
    launch = Launch(f"elementwise.{source}", constants, parameters, grid, _WARPS, dependent_launch=dependent)
    return one_launch(stem, launch, inputs, (out,), by)
