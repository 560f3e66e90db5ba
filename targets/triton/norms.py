"""Templates of norms."""

from __future__ import annotations

from ...ir.mlir import ir
from .kernel import Constexpr, DeviceOperation, DeviceSetting, Launch
from .operand import Layout
from .templates import flag, layouts, number, one_launch, pointers, rows_of
from .tiles import power_of_two_above, waits_for_inputs

_ELEMENTS = 4096
"""Of one program, where heads are short."""


def rms_norm(operation: ir.Operation, setting: DeviceSetting) -> DeviceOperation:
    """ts.rms_norm: (x, weight) -> out, over the last dimension; x is [R, N] or [R, heads, N]."""
    return _by_heads("rms_norm", operation, setting, style(operation))


def layer_norm(operation: ir.Operation, setting: DeviceSetting) -> DeviceOperation:
    """ts.layer_norm: (x, weight[, bias]) -> out, over the last dimension; x is [R, N] or [R, heads, N]."""
    absent: dict[str, Constexpr] = {} if len(operation.operands) == 3 else {"bias": None}
    return _by_heads("layer_norm", operation, setting, {"EPS": number(operation, "eps"), **absent})


def add_rms_norm(operation: ir.Operation, setting: DeviceSetting) -> DeviceOperation:
    """ts.add_rms_norm: (x, residual, weight) -> their sum, and its norm; both of [R, N]."""
    inputs, outputs = layouts(operation)
    x, residual, _ = inputs
    block, dependent, rows = power_of_two_above(x.columns), waits_for_inputs(setting.accelerator), rows_of(operation)
    constants = {
        "N": x.columns,
        "X_ROW": x.row_stride,
        "RESIDUAL_ROW": residual.row_stride,
        "BLOCK": block,
        "DEPENDENT": dependent,
        **style(operation),
    }
    parameters = tuple(pointers((*inputs, *outputs)))
    launch = Launch("norms.add_rms_norm", constants, parameters, (rows, 1, 1), _warps(block), dependent_launch=dependent)
    return one_launch("add_rms_norm", launch, inputs, outputs, rows)


def _by_heads(name: str, operation: ir.Operation, setting: DeviceSetting, style: dict[str, Constexpr]) -> DeviceOperation:
    inputs, outputs = layouts(operation)
    heads, columns, step = _heads(inputs[0])
    block, dependent, rows = power_of_two_above(columns), waits_for_inputs(setting.accelerator), rows_of(operation)
    together = min(power_of_two_above(heads), max(1, _ELEMENTS // block))
    constants = {
        "HEADS": heads,
        "N": columns,
        "X_ROW": inputs[0].row_stride,
        "X_HEAD": step,
        "BLOCK_HEADS": together,
        "BLOCK": block,
        "DEPENDENT": dependent,
        **style,
    }
    grid = (rows, -(-heads // together), 1)
    parameters = tuple(pointers((*inputs, *outputs)))
    launch = Launch(f"norms.{name}", constants, parameters, grid, _warps(together * block), dependent_launch=dependent)
    return one_launch(name, launch, inputs, outputs, rows)


def _heads(x: Layout) -> tuple[int, int, int]:
    if len(x.shape) == 3:
        return x.shape[1] or 1, x.shape[2] or 1, x.strides[1]
    return 1, x.columns, 0


def style(operation: ir.Operation) -> dict[str, Constexpr]:
    """What a norm does apart from its sizes."""
    return {
        "EPS": number(operation, "eps"),
        "ONE_PLUS": flag(operation, "one_plus_weight"),
        "CAST_FIRST": flag(operation, "cast_before_weight"),
    }


def _warps(elements: int) -> int:
    return max(1, min(16, elements // 256))
