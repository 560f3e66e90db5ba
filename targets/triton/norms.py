"""Templates of RMS norms."""

from __future__ import annotations

from ...ir import module as modules
from ...ir.mlir import ir
from .kernel import Constexpr, DeviceOperation, DeviceSetting, FunctionTemplate, Launch, always, single
from .naming import function_name
from .operand import Layout, layout_of
from .tiles import power_of_two_above, waits_for_inputs

_ELEMENTS = 4096
"""Of one program, where heads are short."""


def rms_norm(operation: ir.Operation, setting: DeviceSetting) -> DeviceOperation:
    """ts.rms_norm: (x, weight) -> out, over the last dimension; x is [R, N] or [R, heads, N]."""
    x, weight, out = (layout_of(value) for value in (*operation.operands, *operation.results))
    heads = (x.shape[1] or 1) if len(x.shape) == 3 else 1
    columns, block = x.shape[-1] or 1, power_of_two_above(x.shape[-1] or 1)
    together = min(power_of_two_above(heads), max(1, _ELEMENTS // block))
    constants = {
        "HEADS": heads,
        "N": columns,
        "X_ROW": x.row_stride,
        "X_HEAD": x.strides[1] if len(x.shape) == 3 else 0,
        "BLOCK_HEADS": together,
        "BLOCK": block,
        **_style(operation, setting),
    }
    launch = Launch(
        "norms.rms_norm",
        constants,
        (x.pointer(0), weight.pointer(1), out.pointer(2)),
        ("rows", -(-heads // together), 1),
        _warps(together * block),
        dependent_launch=waits_for_inputs(setting.accelerator),
    )
    return single(_template("rms_norm", constants, (x, weight), (out,), launch))


def add_rms_norm(operation: ir.Operation, setting: DeviceSetting) -> DeviceOperation:
    """ts.add_rms_norm: (x, residual, weight) -> their sum, and its norm; both of [R, N]."""
    layouts = [layout_of(value) for value in (*operation.operands, *operation.results)]
    x, residual = layouts[:2]
    columns, block = x.columns, power_of_two_above(x.columns)
    constants = {
        "N": columns,
        "X_ROW": x.row_stride,
        "RESIDUAL_ROW": residual.row_stride,
        "BLOCK": block,
        **_style(operation, setting),
    }
    launch = Launch(
        "norms.add_rms_norm",
        constants,
        tuple(layout.pointer(index) for index, layout in enumerate(layouts)),
        ("rows", 1, 1),
        _warps(block),
        dependent_launch=waits_for_inputs(setting.accelerator),
    )
    return single(_template("add_rms_norm", constants, tuple(layouts[:3]), tuple(layouts[3:]), launch))


def _style(operation: ir.Operation, setting: DeviceSetting) -> dict[str, Constexpr]:
    return {
        "EPS": modules.float_attribute(operation, "eps"),
        "ONE_PLUS": bool(modules.int_attribute(operation, "one_plus_weight")),
        "CAST_FIRST": bool(modules.int_attribute(operation, "cast_before_weight")),
        "DEPENDENT": waits_for_inputs(setting.accelerator),
    }


def _template(
    stem: str,
    constants: dict[str, Constexpr],
    inputs: tuple[Layout, ...],
    outputs: tuple[Layout, ...],
    launch: Launch,
) -> FunctionTemplate:
    name = function_name(stem, inputs[0].dtype, launch.parameters, constants)
    return FunctionTemplate(name, tuple(item.dtype for item in inputs), tuple(item.dtype for item in outputs), always(launch))


def _warps(elements: int) -> int:
    return max(1, min(16, elements // 256))
