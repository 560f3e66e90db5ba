"""Templates of mixtures of experts: routing, and the experts over pairs of row and expert in the order of experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from ...ir import module as modules
from ...ir.mixture import all_experts, numbers_of
from ...ir.mlir import ir
from ...plans.device_kernels import Computed, Constant, Parameter, Pointer, Size
from ...plans.program import DType
from ...plans.weight_layout import WEIGHT_BLOCKS, chunk_of
from ..machine import Figure, Machine
from .few_experts import adding, few_pairs, pairs_alone
from .kernel import (
    Constexpr,
    DeviceOperation,
    DeviceSetting,
    DeviceStep,
    FunctionTemplate,
    Intermediate,
    Launch,
    Variants,
    merged,
)
from .measured_tiles import ExpertTiles, described, find_experts
from .operand import MOST_ALIGNMENT, Layout
from .templates import flag, function_name, layouts, left_out, number, one_function, one_launch, pointers, rows_of
from .tiles import paired_codes, power_of_two_above, waits_for_inputs

_SCAN = 1024
_COLUMNS = 1024
_RANKED = 256
"""Experts up to which all are compared with all."""


def moe_route(operation: ir.Operation, setting: DeviceSetting) -> DeviceOperation:
    """ts.moe_route: (logits[, bias]) -> indices, weights."""
    inputs, outputs = layouts(operation)
    experts, dependent, rows = inputs[0].columns, waits_for_inputs(setting.accelerator), rows_of(operation)
    top_k, groups = modules.int_attribute(operation, "top_k"), modules.int_attribute(operation, "groups")
    constants: dict[str, Constexpr] = {
        "E": experts,
        "ROW": inputs[0].row_stride,
        "K": top_k,
        "SCORING": modules.text_attribute(operation, "scoring"),
        "NORMALIZE": flag(operation, "normalize"),
        "SCALE": number(operation, "scale"),
        "GROUPS": groups,
        "TOP_GROUPS": modules.int_attribute(operation, "top_groups"),
        "GROUP_BEST": modules.int_attribute(operation, "group_best"),
        "RANKED": groups == 1 and experts <= _RANKED,
        "BLOCK_E": power_of_two_above(experts),
        "BLOCK_K": power_of_two_above(top_k),
        "BLOCK_G": power_of_two_above(groups),
        "DEPENDENT": dependent,
    }
    if len(inputs) == 1:
        constants["bias"] = None
    parameters = tuple(pointers((*inputs, *outputs)))
    # a thread compares one expert with all others
    warps = max(1, power_of_two_above(experts) // 32) if constants["RANKED"] else 1
    launch = Launch("mixture.route", constants, parameters, (rows, 1, 1), warps, dependent_launch=dependent)
    return one_launch("moe_route", launch, inputs, outputs, rows)


TilesOf = Callable[[int], ExpertTiles]
"""For buckets of up to so many rows."""


def moe_experts(operation: ir.Operation, setting: DeviceSetting, tiles_of: TilesOf | None = None) -> DeviceOperation:
    """ts.moe_experts: (x, indices, weights, gate_up, down[, gate_up_bias, down_bias][, numbers]) -> out. `tiles_of` gives the
    tiles, as they were measured, or else those of rules, unless given; then pairs are always put in order."""
    inputs, (out,) = layouts(operation)
    ordered = _Experts(operation, setting, inputs, out, tiles_of).operation_of()
    if tiles_of is not None or not pairs_alone(operation, 1):
        return ordered
    count = len(inputs)
    why = repr((inputs[4].shape[0], inputs[1].columns))
    apart = tuple(left_out(step, partial(pairs_alone, operation), why) for step in ordered.steps)
    if adding(operation) is not None:
        return replace(ordered, steps=apart)
    few, _ = few_pairs(operation, setting, tuple(range(count)), count)  # room is there already
    return replace(ordered, steps=(*apart, *few))


def measured_experts(operation: ir.Operation, machine: Machine, rows: int) -> Figure | None:
    """What was measured of such experts, where their pairs are put in order; of some of them, what was measured of all: each has
    as many pairs."""
    if pairs_alone(operation, rows):
        return None
    x, indices, _, _, down, *_ = layouts(operation)[0]
    experts, (_, hidden, inner) = all_experts(operation), (size or 1 for size in down.shape)
    row = find_experts(machine.arch, x.dtype, rows, (experts, indices.columns, hidden, inner))
    if row is None:
        return None
    what = f"{row.rows} rows, {row.top_k} of {experts} experts of {hidden} x {inner}"
    return Figure(row.share, described(machine.arch, row, what))


def _tiles(pairs: int, columns: int, inner: int, warps: int, stages: int) -> ExpertTiles:
    return ExpertTiles(pairs=pairs, columns=columns, inner=inner, warps=warps, stages=stages)


@dataclass(frozen=True)
class _Experts:
    operation: ir.Operation
    setting: DeviceSetting
    inputs: tuple[Layout, ...]
    out: Layout
    tiles_of: TilesOf | None = None

    @property
    def top_k(self) -> int:
        return self.inputs[1].columns

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Experts, columns of x, columns between gate_up and down."""
        experts, hidden, inner = (size or 1 for size in self.inputs[4].shape)
        return experts, hidden, inner

    @property
    def numbers(self) -> int | None:
        """The operand that says which of the model's experts these are; None: all."""
        return None if numbers_of(self.operation) is None else len(self.inputs) - 1

    def tiles(self, rows: int) -> ExpertTiles:
        """Few pairs of an expert read its weights once; many fill the matrix instructions."""
        if self.tiles_of is not None:
            return self.tiles_of(rows)
        experts, (_, hidden, inner) = all_experts(self.operation), self.sizes
        if any(self.inputs[at].dtype in WEIGHT_BLOCKS for at in (3, 4)):
            return self._tiles_of_blocks(rows)
        sizes = (experts, self.top_k, hidden, inner)
        if (row := find_experts(self.setting.accelerator.arch, self.inputs[0].dtype, rows, sizes)) is not None:
            return row.tiles
        of_expert = rows * self.top_k / experts
        if self.inputs[0].dtype == "f32":
            return _tiles(16, 16, 32, 4, 2)
        if of_expert <= 16:
            return _tiles(16, 32, 128, 4, 4 if self.setting.accelerator.kind == "cuda" else 2)
        if of_expert <= 64 or self.setting.accelerator.kind == "hip":
            return _tiles(64, 64, 64, 4, 3 if self.setting.accelerator.kind == "cuda" else 2)
        if self.setting.accelerator.arch == "sm_80":  # its sums of gate and of up are all in registers
            return _tiles(128, 64, 64, 8, 3)
        return _tiles(128, 128, 64, 8, 3)

    def _tiles_of_blocks(self, rows: int) -> ExpertTiles:
        stages = 3 if self.setting.accelerator.kind == "cuda" else 2
        if self.inputs[0].dtype == "f32":
            return _tiles(16, 16, 128, 4, 2)
        few = rows * self.top_k <= 16 * all_experts(self.operation)
        return _tiles(16 if few else 64, 64, 128, 4, stages)

    def blocks(self, rows: int) -> int:
        """The most blocks of pairs that there can be."""
        pairs, experts = rows * self.top_k, self.sizes[0]
        return -(-pairs // self.tiles(rows).pairs) + min(pairs, experts)

    def operation_of(self) -> DeviceOperation:
        experts, hidden, inner = self.sizes
        biased = len(self.inputs) > 6
        after = len(self.inputs)
        biases = (5, 6) if biased else ()
        numbers = () if self.numbers is None else (self.numbers,)
        most = self.setting.max_rows
        room = max(self.blocks(rows) * self.tiles(rows).pairs for rows in (*range(1, min(most, 512) + 1), most))
        # fewer pairs to a block make more blocks
        intermediates = (
            Intermediate("sizes", "i32", (experts,)),
            Intermediate("order", "i32", (max(room, most * self.top_k + experts * 128),)),
            Intermediate("owners", "i32", (most * self.top_k + experts,)),
            Intermediate("made", self.inputs[0].dtype, ("rows", self.top_k * inner)),
            Intermediate("results", self.inputs[0].dtype, ("rows", self.top_k * hidden)),
        )
        steps = (
            DeviceStep(self._count(), (1, *numbers), ("sizes",)),
            DeviceStep(self._arrange(), (1, *numbers, "sizes"), ("order", "owners")),
            DeviceStep(self._product("gate_up", self.inputs[0], 3, biased), (0, 3, *biases[:1], "order", "owners"), ("made",)),
            DeviceStep(self._product("down", None, 4, biased), ("made", 4, *biases[1:], "order", "owners"), ("results",)),
            DeviceStep(self._combine(), ("results", 2, *((1, *numbers) if numbers else ())), (after,)),
        )
        return DeviceOperation(steps, intermediates)

    def _count(self) -> FunctionTemplate:
        dependent = waits_for_inputs(self.setting.accelerator)
        constants: dict[str, Constexpr] = {"K": self.top_k, "BLOCK": _SCAN, "DEPENDENT": dependent, **self._all_here}
        inputs: tuple[DType, ...] = ("i32",) if self.numbers is None else ("i32", "i32")
        parameters = (*_integers(len(inputs) + 1), Computed("rows"))
        launch = Launch("mixture.count", constants, parameters, (self.sizes[0], 1, 1), dependent_launch=dependent)
        return one_function("moe_count", launch, inputs, ("i32",))

    @property
    def _all_here(self) -> dict[str, Constexpr]:
        return {"numbers": None} if self.numbers is None else {}

    def _arrange(self) -> FunctionTemplate:
        dependent, experts = waits_for_inputs(self.setting.accelerator), self.sizes[0]
        inputs: tuple[DType, ...] = ("i32",) * (2 if self.numbers is None else 3)

        def launch(rows: int) -> Launch:
            constants: dict[str, Constexpr] = {"E": experts, "K": self.top_k, "BLOCK_R": self.tiles(rows).pairs, "BLOCK": _SCAN}
            constants |= {"BLOCK_E": power_of_two_above(experts), "DEPENDENT": dependent, **self._all_here}
            parameters = (*_integers(len(inputs) + 2), Computed("rows"), Constant("i32", self.blocks(rows)))
            return Launch("mixture.arrange", constants, parameters, (experts + 1, 1, 1), dependent_launch=dependent)

        return self._function("moe_arrange", inputs, ("i32", "i32"), launch)

    def _product(self, name: str, x: Layout | None, weight: int, biased: bool) -> FunctionTemplate:
        """gate_up over rows x, or down over what that made (x is None)."""
        dependent, dtype = waits_for_inputs(self.setting.accelerator), self.inputs[0].dtype
        _, hidden, inner = self.sizes
        kept = self.inputs[weight].dtype
        types: list[DType] = [dtype, kept, *([dtype] if biased else []), "i32", "i32"]

        def launch(rows: int) -> Launch:
            tiles = self.tiles(rows)
            constants: dict[str, Constexpr] = {"INNER": inner, "H": hidden, "BLOCK_R": tiles.pairs, "BLOCK_N": tiles.columns}
            constants |= {"BLOCK_K": tiles.inner, "STAGES": tiles.stages, "DEPENDENT": dependent}
            if not biased:
                constants["bias"] = None
            if x is not None:
                constants |= {"K": self.top_k, "X_ROW": x.row_stride}
                constants["ACTIVATION"] = modules.text_attribute(self.operation, "activation")
                constants |= {"ALPHA": number(self.operation, "alpha"), "LIMIT": number(self.operation, "limit")}
            if kept in WEIGHT_BLOCKS:
                constants |= {"E": self.sizes[0], "FORMAT": kept, "PAIRED": paired_codes(self.setting.accelerator, dtype)}
                constants["CHUNK"] = chunk_of(self.inputs[weight].shape[-1] or 1, kept)
            source = x.pointer(0) if x is not None else Pointer(0, dtype, MOST_ALIGNMENT)
            parameters: list[Parameter] = [source, self.inputs[weight].pointer(1)]
            parameters += [self.inputs[weight + 2].pointer(2)] if biased else []
            parameters += [Pointer(at, "i32", MOST_ALIGNMENT) for at in range(len(parameters), len(types))]
            parameters.append(Pointer(len(types), dtype, MOST_ALIGNMENT))
            columns = hidden if x is None else inner
            grid: tuple[Size, Size, Size] = (-(-columns // tiles.columns), self.blocks(rows), 1)
            file = "block_mixture" if kept in WEIGHT_BLOCKS else "mixture"
            return Launch(f"{file}.{name}", constants, tuple(parameters), grid, tiles.warps, tiles.stages, dependent)

        return self._function(f"moe_{name}", tuple(types), (dtype,), launch)

    def _combine(self) -> FunctionTemplate:
        dependent, hidden, dtype = waits_for_inputs(self.setting.accelerator), self.sizes[1], self.inputs[0].dtype
        block = min(_COLUMNS, power_of_two_above(hidden))
        constants: dict[str, Constexpr] = {
            "E": self.sizes[0],
            "H": hidden,
            "K": self.top_k,
            "BLOCK": block,
            "DEPENDENT": dependent,
        }
        inputs: list[str] = [dtype, self.inputs[2].dtype]
        parameters: list[Parameter] = [Pointer(0, dtype, MOST_ALIGNMENT), self.inputs[2].pointer(1)]
        if self.numbers is None:
            constants |= {"indices": None, "numbers": None}
        else:
            inputs += ["i32", "i32"]
            parameters += [Pointer(at, "i32", MOST_ALIGNMENT) for at in (2, 3)]
        parameters.append(self.out.pointer(len(inputs)))
        grid: tuple[Size, Size, Size] = ("rows", -(-hidden // block), 1)
        launch = Launch("mixture.combine", constants, tuple(parameters), grid, dependent_launch=dependent)
        return one_function("moe_combine", launch, inputs, (dtype,))

    def _function(
        self, stem: str, inputs: tuple[DType, ...], outputs: tuple[DType, ...], launch: Callable[[int], Launch]
    ) -> FunctionTemplate:
        def variants(bounds: Sequence[int]) -> Variants:
            return merged([(most, launch(most)) for most in bounds])

        sample = launch(self.setting.max_rows)
        depends = {"setting": repr(self.setting), "sample": sample.key, "experts": repr(self.sizes)}
        return FunctionTemplate(function_name(stem, self.inputs[0].dtype, (), depends), inputs, outputs, variants)


def _integers(count: int) -> list[Parameter]:
    return [Pointer(at, "i32", MOST_ALIGNMENT) for at in range(count)]
