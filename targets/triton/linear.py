"""Templates of linear layers: which way and which tiles, by rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...ir.mlir import ir
from ...plans.device_kernels import CeilDivide, Computed, Constant, Product, Symbol
from .kernel import Constexpr, DeviceOperation, DeviceSetting, FunctionTemplate, Launch, Variants, merged, single
from .linear_tiles import Tiles, tiles_for
from .operand import MOST_ALIGNMENT, Layout, layout_of
from .templates import function_name, pointers, rows_of
from .tiles import waits_for_inputs


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
        return min(layout.alignment for layout in (self.x, self.weight, self.out)) == MOST_ALIGNMENT


def linear(operation: ir.Operation, setting: DeviceSetting) -> DeviceOperation:
    """ts.linear: (x, weight[, bias]) -> out. Where x has the logit rows, the buckets' logit rows choose the variant."""
    x, weight, *bias = (layout_of(value) for value in operation.operands)
    layer = _Linear(x, weight, bias[0] if bias else None, layout_of(operation.results[0]))
    by = rows_of(operation)

    def variants(bounds: Sequence[int]) -> Variants:
        chosen = ((most, tiles_for(setting.accelerator, x.dtype, most, *layer.sizes, layer.aligned)) for most in bounds)
        return merged([(most, _launch(layer, setting, tiles, by)) for most, tiles in chosen])

    inputs = (x, weight, *bias)
    depends: dict[str, Constexpr] = {"n": layer.out.columns, "k": x.columns, "row": x.row_stride, "by": by}
    name = function_name(f"linear.n{layer.out.columns}.k{x.columns}", x.dtype, pointers((*inputs, layer.out)), depends)
    return single(FunctionTemplate(name, tuple(item.dtype for item in inputs), (layer.out.dtype,), variants, by))


def _launch(layer: _Linear, setting: DeviceSetting, tiles: Tiles, by: Symbol) -> Launch:
    columns, inner = layer.sizes
    dependent = waits_for_inputs(setting.accelerator) and tiles.way != "many_rows_by_descriptors"
    constants: dict[str, Constexpr] = {"BLOCK_N": tiles.columns, "BLOCK_K": tiles.inner, "STAGES": tiles.stages}
    blocks_n = -(-columns // tiles.columns)
    if tiles.way == "one_row":
        grid = (blocks_n, by, 1)
    elif tiles.way in {"few_rows", "few_rows_turned"}:
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
        constants |= {"DEPENDENT": dependent, "WHOLE": inner % tiles.inner == 0}
    inputs = [layer.x.pointer(0), layer.weight.pointer(1)]
    if layer.bias is None:
        constants["bias"] = None
    else:
        inputs.append(layer.bias.pointer(2))
    sizes = (Constant("i32", size) for size in (columns, inner, layer.x.row_stride))
    return Launch(
        f"linear.{tiles.way}",
        constants,
        (*inputs, layer.out.pointer(len(inputs)), Computed(by), *sizes),
        grid,
        tiles.warps,
        tiles.stages,
        dependent,
    )
