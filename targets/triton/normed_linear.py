"""Templates of an RMS norm and the linear layer that reads it first: one kernel where a step has one row.

Each program of the layer works the norm out for itself, which costs less than waiting for another kernel. The norm and the layer
launch nothing in that bucket; a further function, of the norm's operands and the layer's, does the work of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...ir import module as modules
from ...ir.mlir import ir
from ...ir.types import shape_of
from ...plans.device_kernels import Parameter
from .exchange import add_rms_norm_or_all
from .gated_linear import gated_tiles, linear_or_nothing, takes_over
from .kernel import Constexpr, DeviceOperation, DeviceSetting, DeviceStep, FunctionTemplate, Launch, Operand, Variants, merged
from .linear_tiles import tiles_for
from .measured_tiles import LinearTiles
from .norms import style
from .operand import MOST_ALIGNMENT, layout_of
from .rope import norm_unless_turned
from .templates import function_name, left_out, pointers, rows_of
from .tiles import power_of_two_above, waits_for_inputs

_NORMS = ("ts.rms_norm", "ts.add_rms_norm")

_MOST_COLUMNS = 1024
"""Of a layer: with more programs the norm is worked out so often that a kernel of its own costs less, as was measured."""

_MOST_INNER = 8192


def linear_after_norm(operation: ir.Operation, setting: DeviceSetting) -> DeviceOperation:
    """ts.linear: as gated_linear.linear_or_nothing, but with the norm ahead of it where that is one kernel; the norm's operands
    and results follow then."""
    made = linear_or_nothing(operation, setting)
    norm = modules.maker_of(operation.operands[0])
    tiles = None if norm is None else _tiles_of_both(norm, operation, setting)
    if norm is None or tiles is None:
        return made
    apart = (left_out(step, _one_row, "norm") for step in made.steps)
    return replace(made, steps=(*apart, both(norm, operation, tiles, setting)), more=(*norm.operands, *norm.results))


def rms_norm_or_nothing(operation: ir.Operation, setting: DeviceSetting) -> DeviceOperation:
    """ts.rms_norm: nothing where another operation does it as well."""
    return _unless_with_layer(operation, setting, norm_unless_turned(operation, setting))


def add_rms_norm_or_nothing(operation: ir.Operation, setting: DeviceSetting) -> DeviceOperation:
    """ts.add_rms_norm: nothing where a layer does it as well."""
    return _unless_with_layer(operation, setting, add_rms_norm_or_all(operation, setting))


def _unless_with_layer(norm: ir.Operation, setting: DeviceSetting, made: DeviceOperation) -> DeviceOperation:
    layer = _first_reader(norm)
    if layer is None or _tiles_of_both(norm, layer, setting) is None:
        return made
    return replace(made, steps=tuple(left_out(step, _one_row, "layer") for step in made.steps))


def _one_row(rows: int) -> bool:
    return rows == 1


def _first_reader(norm: ir.Operation) -> ir.Operation | None:
    """The operation that reads what a norm makes before any other does."""
    readers = [reader for value in norm.results for reader, _ in modules.readers_of(value)]
    block = norm.block
    if block is None or any(reader.block != block for reader in readers):
        return None
    return next((view.operation for view in block.operations if view.operation in readers), None)


def _tiles_of_both(norm: ir.Operation, layer: ir.Operation, setting: DeviceSetting) -> LinearTiles | None:
    """The layer's tiles for one row, if it and the norm ahead of it can be one kernel."""
    summed = any((maker := modules.maker_of(value)) is not None and maker.name == "ts.all_reduce" for value in norm.operands)
    if summed or norm.name not in _NORMS or layer.name != "ts.linear" or len(layer.operands) != 2 or norm.parent != layer.parent:
        return None
    x, weight, out = (layout_of(value) for value in (*layer.operands, layer.results[0]))
    dense = all(layout_of(value).row_stride == x.columns for value in norm.operands if None in shape_of(value))
    alike = {layout_of(value).dtype for value in (*norm.operands, *norm.results, *layer.operands)} == {x.dtype}
    if layer.operands[0] != norm.results[-1] or len(x.shape) != 2 or not (dense and alike) or rows_of(layer) != "rows":
        return None
    if out.columns > _MOST_COLUMNS or x.columns > _MOST_INNER:
        return None
    if (first := _first_reader(norm)) is None or first != layer:
        return None
    if takes_over(layer) and gated_tiles(layer, setting, 1) is not None:
        return None
    aligned = min(item.alignment for item in (x, weight, out)) == MOST_ALIGNMENT
    tiles = tiles_for(setting.accelerator, x.dtype, 1, out.columns, x.columns, aligned)
    if tiles.way != "one_row":
        return None
    return LinearTiles(way="one_row", rows=1, columns=2, inner=min(2048, power_of_two_above(x.columns)), warps=4, stages=2)


def both(norm: ir.Operation, layer: ir.Operation, tiles: LinearTiles, setting: DeviceSetting) -> DeviceStep:
    """The call that does the work of both, where a step has one row; the layer's operands, then the norm's and its results."""
    weight, out = layout_of(layer.operands[1]), layout_of(layer.results[0])
    added = norm.name == "ts.add_rms_norm"
    total = [norm.results[0]] if added else []
    normed = [norm.results[-1]] if len(modules.readers_of(norm.results[-1])) > 1 else []
    # operands of the layer, its result, then those of the norm and its results
    first = 3 + len(norm.operands)
    inputs: tuple[Operand, ...] = (*range(3, first), 1)
    outputs: tuple[Operand, ...] = (2, *range(first, first + len(total)), *range(first + added, first + added + len(normed)))
    given = (*map(layout_of, norm.operands), weight)
    made = (out, *map(layout_of, (*total, *normed)))
    constants: dict[str, Constexpr] = {"N": out.columns, "K": weight.shape[1], **style(norm)}
    constants |= {"BLOCK_N": tiles.columns, "BLOCK_K": tiles.inner, "BLOCK": power_of_two_above(weight.shape[1] or 1)}
    dependent = waits_for_inputs(setting.accelerator)
    constants |= {"STAGES": tiles.stages, "DEPENDENT": dependent}
    constants |= {} if total else {"residual": None, "total": None}
    constants |= {} if normed else {"normed": None}
    parameters: tuple[Parameter, ...] = tuple(pointers((*given, *made)))
    grid = (-(-out.columns // tiles.columns), "rows", 1)
    launch = Launch("normed_linear.one_row", constants, parameters, grid, tiles.warps, tiles.stages, dependent)

    def variants(bounds: Sequence[int]) -> Variants:
        return merged([(most, launch if _one_row(most) else None) for most in bounds])

    name = function_name("normed_linear", out.dtype, parameters, constants)
    function = FunctionTemplate(name, tuple(item.dtype for item in given), tuple(item.dtype for item in made), variants)
    return DeviceStep(function, inputs, outputs)
