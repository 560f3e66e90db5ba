"""Templates of linear layers: which way and which tiles, by rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ...ir.mlir import ir
from ...plans.device_kernels import CeilDivide, Computed, Constant, Product, Symbol
from ..machine import Figure, Machine
from .kernel import Constexpr, DeviceOperation, DeviceSetting, FunctionTemplate, Launch, Variants, merged, single
from .linear_tiles import modest_tiles, tiles_for
from .measured_tiles import LinearTiles, Way, described, find_linear
from .operand import MOST_ALIGNMENT, Layout, layout_of
from .templates import function_name, pointers, rows_of
from .tiles import waits_for_inputs

OF_FILES: dict[Way, str] = {"few_rows_ahead": "linear_ahead", "few_rows_shared": "linear_shared"}
"""Ways in files of their own: in Gluon, where K is a multiple of what a stage holds of it."""

_STEP = 16
"""Elements; sizes and strides that code gains by, and so relies on, are multiples of it."""


@dataclass(frozen=True)
class _Linear:
    """The layouts of a linear layer; `bias` is one of its inputs or absent."""

    x: Layout
    weight: Layout
    bias: Layout | None
    out: Layout

    @property
    def sizes(self) -> tuple[int, int]:
        """N and K."""
        return self.out.columns, self.x.columns

    @property
    def aligned(self) -> bool:
        """Whether all rows begin where wide loads, and copies by descriptors, may."""
        whole = min(layout.alignment for layout in (self.x, self.weight, self.out)) == MOST_ALIGNMENT
        return whole and self.x.row_stride % _STEP == 0


def linear(operation: ir.Operation, setting: DeviceSetting) -> DeviceOperation:
    """ts.linear: (x, weight[, bias]) -> out. Where x has the logit rows, the buckets' logit rows choose the variant."""
    layer = _layer(operation)
    return linear_by(
        operation, setting, lambda rows: tiles_for(setting.accelerator, layer.x.dtype, rows, *layer.sizes, layer.aligned)
    )


def measured(operation: ir.Operation, machine: Machine, rows: int) -> Figure | None:
    """What was measured of a layer like this one at `rows` rows, if its tiles come of that."""
    layer = _layer(operation)
    if not layer.aligned or any(size % _STEP for size in layer.sizes):
        return None
    row = find_linear(machine.arch, layer.x.dtype, rows, *layer.sizes)
    if row is None:
        return None
    return Figure(row.share, described(machine.arch, row, f"{row.rows} rows of {row.columns} x {row.inner}"))


def linear_by(operation: ir.Operation, setting: DeviceSetting, tiles_of: Callable[[int], LinearTiles]) -> DeviceOperation:
    """The same with the tiles that `tiles_of` gives for buckets of up to so many rows."""
    return single(_function(_layer(operation), setting, tiles_of, rows_of(operation), 0))


def dense_linear(inputs: Sequence[Layout], out: Layout, setting: DeviceSetting, by: Symbol, above: int) -> FunctionTemplate:
    """(x, weight[, bias]) -> out where there are more than `above` rows; in other buckets nothing runs."""
    x, weight, *bias = inputs
    layer = _Linear(x, weight, bias[0] if bias else None, out)
    return _function(
        layer, setting, lambda rows: tiles_for(setting.accelerator, x.dtype, rows, *layer.sizes, layer.aligned), by, above
    )


def _function(
    layer: _Linear, setting: DeviceSetting, tiles_of: Callable[[int], LinearTiles], by: Symbol, above: int
) -> FunctionTemplate:
    def launch(most: int) -> Launch:
        modest = modest_tiles(most)
        made, otherwise = (_launch(layer, setting, tiles, by) for tiles in (tiles_of(most), modest))
        return made if made.key == otherwise.key else replace(made, otherwise=otherwise)

    def variants(bounds: Sequence[int]) -> Variants:
        return merged([(most, launch(most) if most > above else None) for most in bounds])

    x, bias = layer.x, [] if layer.bias is None else [layer.bias]
    inputs = (x, layer.weight, *bias)
    depends: dict[str, Constexpr] = {"n": layer.out.columns, "k": x.columns, "row": x.row_stride, "by": by, "above": above}
    name = function_name(f"linear.n{layer.out.columns}.k{x.columns}", x.dtype, pointers((*inputs, layer.out)), depends)
    return FunctionTemplate(name, tuple(item.dtype for item in inputs), (layer.out.dtype,), variants, by)


def _layer(operation: ir.Operation) -> _Linear:
    x, weight, *bias = (layout_of(value) for value in operation.operands)
    return _Linear(x, weight, bias[0] if bias else None, layout_of(operation.results[0]))


def _launch(layer: _Linear, setting: DeviceSetting, tiles: LinearTiles, by: Symbol) -> Launch:
    columns, inner = layer.sizes
    # beginning early gains those nothing: they were slower
    dependent = waits_for_inputs(setting.accelerator) and tiles.way != "many_rows_by_descriptors"
    constants: dict[str, Constexpr] = {"BLOCK_N": tiles.columns, "BLOCK_K": tiles.inner, "STAGES": tiles.stages}
    blocks_n = -(-columns // tiles.columns)
    if tiles.way == "one_row":
        grid = (blocks_n, by, 1)
    elif tiles.way in {"few_rows", "few_rows_turned", *OF_FILES}:
        grid = (blocks_n, CeilDivide(by, tiles.rows), 1)
    elif tiles.way == "many_rows":
        grid = (Product((blocks_n, CeilDivide(by, tiles.rows))), 1, 1)
    else:
        grid = (setting.accelerator.units, 1, 1)
        constants["UNITS"] = setting.accelerator.units
    if tiles.way != "one_row":
        constants["BLOCK_R"] = tiles.rows
    if tiles.way in {"many_rows", "many_rows_by_descriptors"}:
        constants["GROUP"] = tiles.group
    if tiles.way != "many_rows_by_descriptors":
        constants["DEPENDENT"] = dependent
    if tiles.way in OF_FILES:
        constants["KIND"] = None
    elif tiles.way != "many_rows_by_descriptors":
        constants["WHOLE"] = inner % tiles.inner == 0
    inputs = [layer.x.pointer(0), layer.weight.pointer(1)]
    if layer.bias is None:
        constants["bias"] = None
    else:
        inputs.append(layer.bias.pointer(2))
    sizes = (Constant("i32", size) for size in (columns, inner, layer.x.row_stride))
    return Launch(
        f"{OF_FILES.get(tiles.way, 'linear')}.{tiles.way}",
        constants,
        (*inputs, layer.out.pointer(len(inputs)), Computed(by), *sizes),
        grid,
        tiles.warps,
        tiles.stages,
        dependent,
    )
