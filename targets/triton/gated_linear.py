"""Templates of gate and up of a feed-forward and the activation that reads them: one kernel where there is one for it.

For a `ts.gated_activation` of both halves of a `ts.linear` that nothing else reads: in buckets where `gated_tiles` has tiles, the
layer and the activation launch nothing, and a third function, of the layer's operands, does the work of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...ir import module as modules
from ...ir.mlir import ir
from ...ir.types import shape_of
from ...plans.device_kernels import CeilDivide, Computed, Constant, Parameter, Size, Symbol
from .elementwise import gated_activation
from .kernel import Constexpr, DeviceOperation, DeviceSetting, DeviceStep, FunctionTemplate, Launch, Variants, merged
from .linear import OF_FILES, linear
from .linear_tiles import tiles_for
from .measured_tiles import LinearTiles
from .operand import MOST_ALIGNMENT, Layout, layout_of
from .templates import function_name, left_out, pointers, rows_of
from .tiles import waits_for_inputs

_STEP = 16

_WAYS = {"one_row", *OF_FILES, "many_rows_by_descriptors"}
"""That have a kernel for both together."""

_MOST_ELEMENTS = 2**30
"""Of the gate's weights: a program counts from its own to the same of up in 32 bits."""


def linear_or_nothing(operation: ir.Operation, setting: DeviceSetting) -> DeviceOperation:
    """ts.linear: as `linear`, but for what its activation does as well."""
    made, gate = linear(operation, setting), _gate_of(operation)
    return made if gate is None else replace(made, steps=tuple(_left_out(step, operation, setting) for step in made.steps))


def gated_activation_or_both(operation: ir.Operation, setting: DeviceSetting) -> DeviceOperation:
    """ts.gated_activation: (gate, up) -> activation(gate) * up, or the layer too, whose operands follow."""
    made, layer = gated_activation(operation, setting), _layer_of(operation)
    if layer is None:
        return made
    both = DeviceStep(_both(operation, layer, setting), (3, 4), (2,))
    return replace(made, steps=(*(_left_out(step, layer, setting) for step in made.steps), both), more=tuple(layer.operands))


def _left_out(step: DeviceStep, layer: ir.Operation, setting: DeviceSetting) -> DeviceStep:
    """The same, but nothing in the buckets where layer and activation are one."""
    return left_out(step, lambda rows: gated_tiles(layer, setting, rows) is not None)


def takes_over(layer: ir.Operation) -> bool:
    """Whether an activation may do the layer's work."""
    return _gate_of(layer) is not None


def _gate_of(layer: ir.Operation) -> ir.Operation | None:
    """The gated activation that alone reads a linear layer, its first half as the gate."""
    readers = _readers(layer.results[0])
    gates = {reader for part in readers for reader in _readers(part.results[0])} if _are_slices(readers) else set()
    gate = gates.pop() if len(gates) == 1 else None
    read = None if gate is None else _layer_of(gate)
    return gate if read is not None and read == layer else None


def _layer_of(gate: ir.Operation) -> ir.Operation | None:
    """The linear layer without bias whose halves an activation has as gate and up, if nothing else reads it."""
    if gate.name != "ts.gated_activation":
        return None
    parts = [modules.maker_of(value) for value in gate.operands]
    if any(part is None or part.name != "ts.slice" for part in parts):
        return None
    first, second = (part for part in parts if part is not None)
    layer, other = modules.maker_of(first.operands[0]), modules.maker_of(second.operands[0])
    width = shape_of(first.results[0])[1]
    starts = [modules.int_attribute(part, "start") for part in (first, second)]
    if layer is None or other is None or layer != other or layer.name != "ts.linear" or len(layer.operands) != 2:
        return None
    whole = starts == [0, width] and shape_of(layer.results[0])[1] == 2 * (width or 0)
    alone = len(_readers(layer.results[0])) == 2 and all(len(_readers(part.results[0])) == 1 for part in (first, second))
    return layer if whole and alone and layer.parent == gate.parent else None


def gated_tiles(layer: ir.Operation, setting: DeviceSetting, rows: int) -> LinearTiles | None:
    """Tiles of both halves together, for buckets of up to so many rows; None where layer and activation are by themselves."""
    x, weight = map(layout_of, layer.operands)
    out = layout_of(layer.results[0])
    aligned = min(item.alignment for item in (x, weight, out)) == MOST_ALIGNMENT and x.row_stride % _STEP == 0
    columns = out.columns // 2
    if weight.dtype != x.dtype or columns % _STEP or columns * x.columns > _MOST_ELEMENTS:
        return None
    tiles = tiles_for(setting.accelerator, x.dtype, rows, out.columns, x.columns, aligned)
    return tiles if tiles.way in _WAYS and tiles.columns > 1 else None


def _both(gate: ir.Operation, layer: ir.Operation, setting: DeviceSetting) -> FunctionTemplate:
    """(x, weight) -> out, in the buckets that have tiles for it."""
    x, weight = map(layout_of, layer.operands)
    out, by = layout_of(gate.results[0]), rows_of(layer)
    kind = modules.text_attribute(gate, "activation")

    def variants(bounds: Sequence[int]) -> Variants:
        chosen = [(most, gated_tiles(layer, setting, most)) for most in bounds]
        return merged([(most, tiles and _launch((x, weight, out), kind, by, setting, tiles)) for most, tiles in chosen])

    depends: dict[str, Constexpr] = {"n": out.columns, "k": x.columns, "row": x.row_stride, "by": by, "kind": kind}
    name = function_name(f"gated_linear.n{out.columns}.k{x.columns}", x.dtype, pointers((x, weight, out)), depends)
    return FunctionTemplate(name, (x.dtype, weight.dtype), (out.dtype,), variants, by)


def _launch(layouts: tuple[Layout, Layout, Layout], kind: str, by: Symbol, setting: DeviceSetting, tiles: LinearTiles) -> Launch:
    """A tile has half as many columns of each half."""
    x, _, out = layouts
    units, own = setting.accelerator.units, tiles.columns // 2
    blocks, file = -(-out.columns // own), "gated_linear"
    constants: dict[str, Constexpr] = {"KIND": kind, "BLOCK_K": tiles.inner, "STAGES": tiles.stages}
    dependent = waits_for_inputs(setting.accelerator) and tiles.way != "many_rows_by_descriptors"
    if tiles.way == "one_row":
        grid: tuple[Size, Size, Size] = (blocks, by, 1)
        constants |= {"BLOCK_N": tiles.columns, "WHOLE": x.columns % tiles.inner == 0, "DEPENDENT": dependent}
    elif tiles.way in OF_FILES:
        file, grid = OF_FILES[tiles.way], (blocks, CeilDivide(by, tiles.rows), 1)
        constants |= {"BLOCK_R": tiles.rows, "BLOCK_N": tiles.columns, "bias": None, "DEPENDENT": dependent}
    else:
        grid = (units, 1, 1)
        constants |= {"BLOCK_R": tiles.rows, "BLOCK_N": own, "GROUP": tiles.group, "UNITS": units}
    sizes = (Constant("i32", size) for size in (out.columns, x.columns, x.row_stride))
    parameters: tuple[Parameter, ...] = (*pointers(layouts), Computed(by), *sizes)
    return Launch(f"{file}.{tiles.way}", constants, parameters, grid, tiles.warps, tiles.stages, dependent)


def _are_slices(operations: Sequence[ir.Operation]) -> bool:
    return len(operations) == 2 and all(operation.name == "ts.slice" for operation in operations)


def _readers(value: ir.Value) -> list[ir.Operation]:
    return [reader for reader, _ in modules.readers_of(value)]
