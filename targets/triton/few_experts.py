"""Templates of experts of a few rows: each pair of row and expert by itself, and what is added to them in the same kernel.

With few rows hardly two of them share an expert, so that nothing is gained by putting pairs in order. Where a `ts.add` alone
reads what the experts make, the experts and the addition launch nothing in such buckets: the addition's last functions do both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from ...ir import module as modules
from ...ir.mixture import numbers_of
from ...ir.mlir import ir
from ...plans.device_kernels import Parameter, Pointer, Product, Size
from ...plans.program import DType
from ...plans.weight_layout import WEIGHT_BLOCKS
from .exchange import add_or_all
from .kernel import (
    Constexpr,
    DeviceOperation,
    DeviceSetting,
    DeviceStep,
    FunctionTemplate,
    Intermediate,
    Launch,
    Operand,
    Variants,
    merged,
)
from .operand import MOST_ALIGNMENT, Layout, layout_of
from .templates import function_name, layouts, left_out, number
from .tiles import power_of_two_above, waits_for_inputs

_MOST_ROWS = 8
_MADE = "made"


@dataclass(frozen=True)
class PairTiles:
    """Columns (of both halves together, where there are two) and inner elements of a tile, warps, stages of its loads."""

    columns: int
    inner: int
    warps: int
    stages: int


def pairs_alone(operation: ir.Operation, rows: int) -> bool:
    """Whether a ts.moe_experts takes each pair by itself in buckets of up to so many rows: for one row, and while the experts
    are at least eight times as many as the pairs. Then hardly any is read twice. Not where they are some of the model's."""
    if numbers_of(operation) is not None:
        return False
    experts, top_k = layout_of(operation.operands[4]).shape[0] or 1, layout_of(operation.operands[1]).columns
    in_blocks = any(layout_of(operation.operands[at]).dtype in WEIGHT_BLOCKS for at in (3, 4))
    return not in_blocks and rows <= _MOST_ROWS and (rows == 1 or 8 * rows * top_k <= experts)


def adding(operation: ir.Operation) -> ir.Operation | None:
    """The ts.add that alone reads what a ts.moe_experts makes."""
    readers = modules.readers_of(operation.results[0])
    if len(readers) != 1 or (reader := readers[0][0]).name != "ts.add" or reader.parent != operation.parent:
        return None
    return reader if reader.operands[0] != reader.operands[1] else None


def add_or_experts(operation: ir.Operation, setting: DeviceSetting) -> DeviceOperation:
    """ts.add: as exchange.add_or_all, or the experts that make one of the two as well, whose operands follow."""
    made = add_or_all(operation, setting)
    for at, value in enumerate(operation.operands):
        experts = modules.maker_of(value)
        if experts is None or experts.name != "ts.moe_experts" or (reader := adding(experts)) is None or reader != operation:
            continue
        places = tuple(range(3, 3 + len(experts.operands)))
        steps, room = few_pairs(experts, setting, places, 2, (1 - at, layout_of(operation.operands[1 - at])))
        apart = (left_out(step, partial(pairs_alone, experts), steps[0].function.name) for step in made.steps)
        return DeviceOperation((*apart, *steps), room, tuple(experts.operands))
    return made


def few_pairs(
    operation: ir.Operation,
    setting: DeviceSetting,
    places: Sequence[Operand],
    out: Operand,
    residual: tuple[Operand, Layout] | None = None,
    tiles: tuple[PairTiles, PairTiles] | None = None,
) -> tuple[tuple[DeviceStep, ...], tuple[Intermediate, ...]]:
    """The calls of a ts.moe_experts in buckets where pairs are by themselves, none in others, and room for what is between them.

    `places` are its operands, `residual` is what is added, unless None; `tiles` of both products are those of rules unless given.
    """
    pairs = _Pairs(operation, setting, layouts(operation)[0], None if residual is None else residual[1], tiles)
    x, indices, factors, first, second, *biases = places
    more: tuple[Operand, ...] = () if residual is None else (residual[0],)
    steps = (
        DeviceStep(pairs.gate_up(), (x, first, *biases[:1], indices), (_MADE,)),
        DeviceStep(pairs.down(), (_MADE, second, *biases[1:], indices, factors, *more), (out,)),
    )
    return steps, (Intermediate(_MADE, pairs.dtype, ("rows", pairs.top_k * pairs.sizes[2])),)


@dataclass(frozen=True)
class _Pairs:
    operation: ir.Operation
    setting: DeviceSetting
    inputs: tuple[Layout, ...]
    residual: Layout | None
    tiles: tuple[PairTiles, PairTiles] | None

    @property
    def dtype(self) -> DType:
        return self.inputs[0].dtype

    @property
    def top_k(self) -> int:
        return self.inputs[1].columns

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Experts, columns of x, columns between the products."""
        experts, hidden, inner = (size or 1 for size in self.inputs[4].shape)
        return experts, hidden, inner

    @property
    def biased(self) -> bool:
        return len(self.inputs) == 7

    def gate_up(self) -> FunctionTemplate:
        tiles = self._tiles(0)
        x, weight, inner = self.inputs[0], self.inputs[3], self.sizes[2]
        constants = self._constants(tiles) | {"X_ROW": x.row_stride, "BLOCK_N": tiles.columns}
        constants["ACTIVATION"] = modules.text_attribute(self.operation, "activation")
        constants |= {"ALPHA": number(self.operation, "alpha"), "LIMIT": number(self.operation, "limit")}
        inputs = [x, weight, *self.inputs[5:6], self.inputs[1]]
        grid: tuple[Size, Size, Size] = (-(-inner // (tiles.columns // 2)), Product(("rows", self.top_k)), 1)
        return self._function("gate_up", constants, inputs, Pointer(len(inputs), self.dtype, MOST_ALIGNMENT), grid, tiles)

    def down(self) -> FunctionTemplate:
        tiles, hidden = self._tiles(1), self.sizes[1]
        made = Layout(self.dtype, (None, self.top_k * self.sizes[2]), (self.top_k * self.sizes[2], 1))
        constants = self._constants(tiles) | {"BLOCK_P": power_of_two_above(self.top_k), "BLOCK_N": tiles.columns}
        inputs = [made, self.inputs[4], *self.inputs[6:7], self.inputs[1], self.inputs[2]]
        if self.residual is None:
            constants |= {"residual": None, "RESIDUAL_ROW": 0}
        else:
            inputs.append(self.residual)
            constants["RESIDUAL_ROW"] = self.residual.row_stride
        grid: tuple[Size, Size, Size] = (-(-hidden // tiles.columns), "rows", 1)
        return self._function("down", constants, inputs, layout_of(self.operation.results[0]).pointer(len(inputs)), grid, tiles)

    def _constants(self, tiles: PairTiles) -> dict[str, Constexpr]:
        experts, hidden, inner = self.sizes
        constants: dict[str, Constexpr] = {"E": experts, "INNER": inner, "H": hidden, "K": self.top_k}
        constants |= {"BLOCK_K": tiles.inner, "STAGES": tiles.stages, "DEPENDENT": waits_for_inputs(self.setting.accelerator)}
        return constants if self.biased else constants | {"bias": None}

    def _tiles(self, at: int) -> PairTiles:
        if self.tiles is not None:
            return self.tiles[at]
        _, hidden, inner = self.sizes
        return first_tiles(self.dtype, hidden) if at == 0 else second_tiles(self.dtype, inner, self.top_k)

    def _function(
        self,
        name: str,
        constants: dict[str, Constexpr],
        inputs: Sequence[Layout],
        out: Pointer,
        grid: tuple[Size, Size, Size],
        tiles: PairTiles,
    ) -> FunctionTemplate:
        dependent = waits_for_inputs(self.setting.accelerator)
        parameters: tuple[Parameter, ...] = (*(layout.pointer(at) for at, layout in enumerate(inputs)), out)
        launch = Launch(f"few_experts.{name}", constants, parameters, grid, tiles.warps, tiles.stages, dependent)
        # where that is too much for a thread's registers
        launch = replace(launch, otherwise=replace(launch, constants={**constants, "BLOCK_K": max(16, tiles.inner // 4)}))

        def variants(bounds: Sequence[int]) -> Variants:
            return merged([(most, launch if pairs_alone(self.operation, most) else None) for most in bounds])

        called = function_name(f"few_experts_{name}", self.dtype, parameters, {**constants, "launch": launch.key})
        return FunctionTemplate(called, tuple(layout.dtype for layout in inputs), (self.dtype,), variants)


def first_tiles(dtype: DType, hidden: int) -> PairTiles:
    """Of gate and up: those of Qwen3 30B A3B that took least on an H200 (benchmarks/gpu_few_rows.py)."""
    return PairTiles(4, min(2048 if dtype != "f32" else 1024, power_of_two_above(hidden)), 4, 2)


def second_tiles(dtype: DType, inner: int, top_k: int) -> PairTiles:
    """Of the products that are summed up, a tile of which has all experts of a row: all of their inner elements where a block's
    registers hold them, so that every weight is asked for before there is anything to multiply it with."""
    columns = 2
    elements = (16384 if dtype != "f32" else 4096) // (columns * power_of_two_above(top_k))
    return PairTiles(columns, max(16, min(elements, power_of_two_above(inner))), 4, 2)
