"""Templates of linear layers in products of 8-bit floats: x becomes such floats, which then meet the weight's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ...plans.device_kernels import CeilDivide, Computed, Constant, Parameter, Pointer, Product, Size, Symbol
from ...plans.weight_layout import StoredType
from ..accelerator import Accelerator
from .float8_tiles import MODEST, MOST_DECODED, MOST_SPLIT, FewTiles, ManyTiles, few_tiles, many_tiles
from .kernel import Constexpr, DeviceOperation, DeviceStep, FunctionTemplate, Intermediate, Launch, Variants, merged
from .operand import MOST_ALIGNMENT, Layout
from .shares import joined_shares
from .templates import function_name, pointers
from .tiles import waits_for_inputs

_ROW, _BLOCKS = 4096, 8
"""Elements of a row at a time where rows are rounded; blocks of a program where they are split."""

_HALVES, _FACTORS, _PARTS, _CODES, _SCALES = "halves", "factors", "parts", "codes", "scales"
Grid = tuple[Size, Size, Size]


@dataclass(frozen=True)
class Float8Layer:
    """(x, weight[, bias]) -> out with the weight in blocks of e4m3_128, in steps of up to `most` rows: up to MOST_SPLIT of them,
    and more than MOST_DECODED."""

    inputs: tuple[Layout, ...]
    out: Layout
    accelerator: Accelerator
    by: Symbol
    most: int

    @property
    def sizes(self) -> tuple[int, int]:
        """N and K."""
        return self.out.columns, self.inputs[0].columns

    def operation(self) -> DeviceOperation:
        out, bias, (columns, inner) = len(self.inputs), tuple(range(2, len(self.inputs))), self.sizes
        few = min(self.most, MOST_SPLIT)
        shared = [rows * shares for rows in range(1, few + 1) if (shares := self.few_tiles(rows).shares) > 1]
        steps = [
            DeviceStep(self.split(), (0,), (_HALVES, _FACTORS)),
            DeviceStep(self.few(bool(shared)), (_HALVES, _FACTORS, 1, *bias), (out, _PARTS) if shared else (out,)),
        ]
        made = [Intermediate(_HALVES, "u8", (2 * few * inner,)), Intermediate(_FACTORS, "f32", (inner // 128 * MOST_SPLIT,))]
        if shared:
            joined = joined_shares(self._name("parts"), self.out, self.inputs[2:], self.accelerator, self.by, self._shares)
            steps.append(DeviceStep(joined, (_PARTS, *bias), (out,)))
            made.append(Intermediate(_PARTS, "f32", (max(shared) * columns,)))
        if self.most > MOST_DECODED:
            steps.append(DeviceStep(self.rounded(), (0,), (_CODES, _SCALES)))
            steps.append(DeviceStep(self.many(), (_CODES, _SCALES, 1, *bias), (out,)))
            made += [Intermediate(_CODES, "u8", (self.by, inner)), Intermediate(_SCALES, "f32", (self.by,))]
        return DeviceOperation(tuple(steps), tuple(made))

    def few_tiles(self, rows: int) -> FewTiles:
        return few_tiles(self.accelerator, rows, *self.sizes)

    def _shares(self, rows: int) -> int:
        return self.few_tiles(rows).shares if rows <= MOST_SPLIT else 1

    def split(self) -> FunctionTemplate:
        """(x) -> halves, factors."""
        _, inner = self.sizes
        parameters: list[Parameter] = [self.inputs[0].pointer(0), Pointer(1, "u8", MOST_ALIGNMENT)]
        parameters += [Pointer(2, "f32", MOST_ALIGNMENT), Computed(self.by)]
        parameters += [Constant("i32", size) for size in (inner, self.inputs[0].row_stride)]
        constants: dict[str, Constexpr] = {"MOST": MOST_SPLIT, "BLOCKS": _BLOCKS}
        launch = self._launch("split_rows", constants, parameters, (self.by, -(-inner // (128 * _BLOCKS)), 1))
        return self._function("split", (self.inputs[0].dtype,), ("u8", "f32"), lambda rows: self._few(rows, launch))

    def few(self, shared: bool) -> FunctionTemplate:
        """(halves, factors, weight[, bias]) -> out, or shares of it."""
        types: tuple[StoredType, ...] = ("u8", "f32", *(item.dtype for item in self.inputs[1:]))
        outputs: tuple[StoredType, ...] = (self.out.dtype, "f32") if shared else (self.out.dtype,)

        def launch(rows: int) -> Launch:
            tiles = self.few_tiles(rows)
            # in as many shares as others
            modest = FewTiles(tiles.rows, 64, 4, 2, tiles.shares)
            return replace(self._few_rows(tiles), otherwise=self._few_rows(modest))

        return self._function("few", types, outputs, lambda rows: self._few(rows, launch(rows)))

    def _few(self, rows: int, launch: Launch) -> Launch | None:
        return launch if rows <= MOST_SPLIT else None

    def _few_rows(self, tiles: FewTiles) -> Launch:
        columns, inner = self.sizes
        bias = self.inputs[2:] if tiles.shares == 1 else ()
        constants: dict[str, Constexpr] = {"MOST": MOST_SPLIT, "BLOCK_R": tiles.rows, "BLOCK_N": tiles.columns}
        constants |= {"AHEAD": tiles.ahead, "STAGES": tiles.stages}
        if not bias:
            constants["bias"] = None
        after = 1 + len(self.inputs)
        target = self.out.pointer(after) if tiles.shares == 1 else Pointer(after + 1, "f32", MOST_ALIGNMENT)
        parameters = [*self._of_x(), *pointers((self.inputs[1], *bias), 2), target, Computed(self.by)]
        parameters += [Constant("i32", size) for size in (columns, inner, -(-inner // (128 * tiles.shares)))]
        grid = (CeilDivide(self.by, tiles.rows), -(-columns // tiles.columns), tiles.shares)
        return self._launch("few_rows", constants, parameters, grid, tiles.warps, tiles.stages)

    def rounded(self) -> FunctionTemplate:
        """(x) -> codes, scales."""
        _, inner = self.sizes
        parameters: list[Parameter] = [self.inputs[0].pointer(0), Pointer(1, "u8", MOST_ALIGNMENT)]
        parameters.append(Pointer(2, "f32", MOST_ALIGNMENT))
        parameters += [Constant("i32", size) for size in (inner, self.inputs[0].row_stride)]
        launch = self._launch("round_rows", {"BLOCK": _ROW}, parameters, (self.by, 1, 1))
        return self._function("rounded", (self.inputs[0].dtype,), ("u8", "f32"), lambda rows: self._many(rows, launch))

    def many(self) -> FunctionTemplate:
        """(codes, scales, weight[, bias]) -> out."""
        types: tuple[StoredType, ...] = ("u8", "f32", *(item.dtype for item in self.inputs[1:]))

        def launch(rows: int) -> Launch | None:
            made, modest = self._many_rows(many_tiles(self.accelerator, rows, self.sizes[0])), self._many_rows(MODEST)
            return self._many(rows, replace(made, otherwise=modest))

        return self._function("many", types, (self.out.dtype,), launch)

    def _many(self, rows: int, launch: Launch) -> Launch | None:
        return launch if rows > MOST_DECODED else None

    def _many_rows(self, tiles: ManyTiles) -> Launch:
        columns, inner = self.sizes
        constants: dict[str, Constexpr] = {"BLOCK_R": tiles.rows, "BLOCK_N": tiles.columns, "GROUP": tiles.group}
        constants["STAGES"] = tiles.stages
        if len(self.inputs) == 2:
            constants["bias"] = None
        parameters = [*self._of_x(), *pointers(self.inputs[1:], 2)]
        parameters += [self.out.pointer(len(parameters)), Computed(self.by), Constant("i32", columns), Constant("i32", inner)]
        if tiles.staying:
            programs = tiles.staying * self.accelerator.units
            constants["PROGRAMS"] = programs
            name, grid = "many_rows_by_descriptors", (programs, 1, 1)
        else:
            name, grid = "many_rows", (Product((-(-columns // tiles.columns), CeilDivide(self.by, tiles.rows))), 1, 1)
        return self._launch(name, constants, parameters, grid, tiles.warps, tiles.stages)

    def _of_x(self) -> list[Parameter]:
        return [Pointer(0, "u8", MOST_ALIGNMENT), Pointer(1, "f32", MOST_ALIGNMENT)]

    def _launch(
        self,
        name: str,
        constants: dict[str, Constexpr],
        parameters: Sequence[Parameter],
        grid: Grid,
        warps: int = 4,
        stages: int = 2,
    ) -> Launch:
        # programs that stay gain nothing by beginning early
        dependent = waits_for_inputs(self.accelerator) and not name.endswith("descriptors")
        everything = constants if name.endswith("descriptors") else constants | {"DEPENDENT": dependent}
        return Launch(f"float8_linear.{name}", everything, tuple(parameters), grid, warps, stages, dependent)

    def _function(
        self, stem: str, inputs: Sequence[StoredType], outputs: Sequence[StoredType], launch: Callable[[int], Launch | None]
    ) -> FunctionTemplate:
        def variants(bounds: Sequence[int]) -> Variants:
            return merged([(most, launch(most)) for most in bounds])

        return FunctionTemplate(self._name(stem), tuple(inputs), tuple(outputs), variants, self.by)

    def _name(self, stem: str) -> str:
        columns, inner = self.sizes
        depends: dict[str, Constexpr] = {"row": self.inputs[0].row_stride, "by": self.by, "most": self.most}
        operands = pointers((*self.inputs, self.out))
        return function_name(f"linear_{stem}.n{columns}.k{inner}.e4m3_128", self.inputs[0].dtype, operands, depends)
