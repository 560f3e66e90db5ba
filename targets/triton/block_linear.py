"""Templates of linear layers whose weight is in blocks: few rows stream it once, many meet it in elements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...ir.mlir import ir
from ...plans.device_kernels import CeilDivide, Computed, Constant, Parameter, Pointer, Size, Symbol
from ...plans.weight_layout import BLOCKS, StoredType, chunk_of
from .block_tiles import MOST_STREAMED, Tiles, smallest_tiles, tiles_for
from .float8_linear import Float8Layer
from .float8_tiles import MOST_DECODED, MOST_SPLIT, splits
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
from .linear import dense_linear
from .operand import MOST_ALIGNMENT, Layout, dense_strides, layout_of
from .shares import joined_shares
from .templates import function_name, pointers, rows_of
from .tiles import paired_codes, waits_for_inputs

_EXPANDED = 8192
"""Elements of a program."""

_SHARES, _DENSE = "shares", "dense"
Grid = tuple[Size, Size, Size]


def block_linear(operation: ir.Operation, setting: DeviceSetting) -> DeviceOperation:
    """ts.linear with a weight in planes: (x, weight[, bias]) -> out.

    Up to MOST_STREAMED rows weights become elements on the way; K may be cut into shares, whose sums are then joined. For more
    rows the weight is laid out in elements first. Where a device multiplies 8-bit floats, such weights stay what they are
    (float8_linear.py).
    """
    inputs = tuple(layout_of(value) for value in operation.operands)
    layer = _Layer(inputs, layout_of(operation.results[0]), rows_of(operation), setting, MOST_STREAMED)
    if not splits(setting.accelerator, inputs[0].dtype, inputs[1].dtype):
        return DeviceOperation(tuple(layer.steps()), tuple(layer.intermediates()))
    made = Float8Layer(inputs, layer.out, setting.accelerator, layer.by, layer.most).operation()
    if layer.most <= MOST_SPLIT:
        return made
    layer = replace(layer, above=MOST_SPLIT, streamed_rows=MOST_DECODED)
    return DeviceOperation((*made.steps, *layer.few_steps()), (*made.intermediates, *layer.few_intermediates()))


@dataclass(frozen=True)
class _Layer:
    """Weights stream in buckets of more than `above` and up to `streamed_rows` rows."""

    inputs: tuple[Layout, ...]
    out: Layout
    by: Symbol
    setting: DeviceSetting
    streamed_rows: int
    above: int = 0

    @property
    def sizes(self) -> tuple[int, int]:
        """N and K."""
        return self.out.columns, self.inputs[0].columns

    @property
    def most(self) -> int:
        return self.setting.max_rows if self.by == "rows" else self.setting.max_sequences

    def tiles(self, rows: int) -> Tiles:
        x, weight, *_ = self.inputs
        return tiles_for(self.setting.accelerator, x.dtype, weight.dtype, rows, *self.sizes)

    def steps(self) -> list[DeviceStep]:
        made, bias = self.few_steps(), tuple(range(2, len(self.inputs)))
        if self.most > self.streamed_rows:
            expanded: tuple[Operand, ...] = (0, _DENSE, *bias)
            made += [DeviceStep(self.expanded(), (1,), (_DENSE,)), DeviceStep(self.dense(), expanded, (len(self.inputs),))]
        return made

    def few_steps(self) -> list[DeviceStep]:
        out, bias = len(self.inputs), tuple(range(2, len(self.inputs)))
        shared = bool(self.shared_rows)
        made = [DeviceStep(self.streamed(), tuple(range(out)), (out, _SHARES) if shared else (out,))]
        if shared:
            made.append(DeviceStep(self.joined(), (_SHARES, *bias), (out,)))
        return made

    @property
    def shared_rows(self) -> list[int]:
        """The numbers of rows for which K is cut."""
        return [rows for rows in range(1, self.most + 1) if self.streams(rows) and self.tiles(rows).shares > 1]

    def intermediates(self) -> list[Intermediate]:
        made = self.few_intermediates()
        if self.most > self.streamed_rows:
            made.append(Intermediate(_DENSE, self.inputs[0].dtype, self.sizes))  # pyright: ignore[reportArgumentType]
        return made

    def few_intermediates(self) -> list[Intermediate]:
        if not self.shared_rows:
            return []
        # a bucket has at most so many rows, and the tiles of its own number
        most = max(rows * self.tiles(rows).shares for rows in self.shared_rows)
        return [Intermediate(_SHARES, "f32", (most * self.sizes[0],))]

    def streams(self, rows: int) -> bool:
        return self.above < rows <= self.streamed_rows

    def streamed(self) -> FunctionTemplate:
        types: tuple[StoredType, ...] = tuple(item.dtype for item in self.inputs)
        outputs: tuple[StoredType, ...] = (self.out.dtype, "f32") if self.shared_rows else (self.out.dtype,)

        def variants(bounds: Sequence[int]) -> Variants:
            return merged([(most, self._streamed(self.tiles(most)) if self.streams(most) else None) for most in bounds])

        return FunctionTemplate(self._name("streamed"), types, outputs, variants, self.by)

    def _streamed(self, tiles: Tiles) -> Launch:
        """With tiles that fit any device where these do not: what sizes and bias add to one is not known before it is built."""
        x, weight, *_ = self.inputs
        least = smallest_tiles(tiles, chunk_of(x.columns, weight.dtype))
        return replace(self._rows(tiles), otherwise=self._rows(least))

    def _rows(self, tiles: Tiles) -> Launch:
        x, weight, *bias = self.inputs
        columns, inner = self.sizes
        share = -(-inner // (tiles.inner * tiles.shares))
        constants = self._codes() | {"BLOCK_R": tiles.rows, "BLOCK_N": tiles.columns, "BLOCK_K": tiles.inner}
        constants |= {"WHOLE": inner % tiles.inner == 0, "STAGES": tiles.stages}
        if not bias or tiles.shares > 1:
            constants["bias"], bias = None, []
        after = len(self.inputs)
        target = self.out.pointer(after) if tiles.shares == 1 else Pointer(after + 1, "f32", MOST_ALIGNMENT)
        parameters = [*pointers((x, weight, *bias)), target, Computed(self.by)]
        parameters += [Constant("i32", size) for size in (columns, inner, inner // BLOCKS[weight.dtype][0], x.row_stride, share)]
        grid = (CeilDivide(self.by, tiles.rows), -(-columns // tiles.columns), tiles.shares)
        return self._launch("rows", constants, parameters, grid, tiles.warps, tiles.stages)

    def joined(self) -> FunctionTemplate:
        return joined_shares(self._name("joined"), self.out, self.inputs[2:], self.setting.accelerator, self.by, self._shares)

    def _shares(self, rows: int) -> int:
        return self.tiles(rows).shares if self.streams(rows) else 1

    def expanded(self) -> FunctionTemplate:
        x, weight, *_ = self.inputs
        columns, inner = self.sizes
        chunks = _EXPANDED // chunk_of(inner, weight.dtype)
        parameters: list[Parameter] = [weight.pointer(0), Pointer(1, x.dtype, MOST_ALIGNMENT)]
        parameters += [Constant("i32", size) for size in (columns, inner)]
        grid = (-(-columns * inner // _EXPANDED), 1, 1)
        launch = self._launch("expand", self._codes() | {"BLOCK": chunks}, parameters, grid, 4, 1)

        def variants(bounds: Sequence[int]) -> Variants:
            return merged([(most, launch if most > self.streamed_rows else None) for most in bounds])

        return FunctionTemplate(self._name("expanded"), (weight.dtype,), (x.dtype,), variants, self.by)

    def dense(self) -> FunctionTemplate:
        x, _, *bias = self.inputs
        shape = self.sizes
        weight = Layout(x.dtype, shape, dense_strides(shape))
        return dense_linear((x, weight, *bias), self.out, self.setting, self.by, self.streamed_rows)

    def _codes(self) -> dict[str, Constexpr]:
        """Constants of code that reads the weight."""
        x, weight, *_ = self.inputs
        return {
            "FORMAT": weight.dtype,
            "CHUNK": chunk_of(x.columns, weight.dtype),
            "PAIRED": paired_codes(self.setting.accelerator, x.dtype),
        }

    def _launch(
        self, source: str, constants: dict[str, Constexpr], parameters: Sequence[Parameter], grid: Grid, warps: int, stages: int
    ) -> Launch:
        dependent = waits_for_inputs(self.setting.accelerator)
        everything = constants | {"DEPENDENT": dependent}
        return Launch(f"block_linear.{source}", everything, tuple(parameters), grid, warps, stages, dependent)

    def _name(self, stem: str) -> str:
        columns, inner = self.sizes
        x, weight, *_ = self.inputs
        depends = {"row": x.row_stride, "by": self.by, "most": self.most}
        return function_name(
            f"linear_{stem}.n{columns}.k{inner}.{weight.dtype}", x.dtype, pointers((*self.inputs, self.out)), depends
        )
