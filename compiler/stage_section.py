"""emit: what each stage of a pipeline has, as the manifest says it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ..ir import module as modules
from ..ir.mlir import ir
from ..passes.choose_weight_types import layers_of
from ..passes.layer_units import units
from ..plans.program import Program, Repeat
from ..plans.schema import (
    CostRow,
    KvGroup,
    MemoryPlan,
    Stage,
    StagePart,
    StateGroup,
    Weight,
)
from ..plans.stages import RECEIVE, SEND, crossings_of, groups_of_stage, shifted, weights_of_stage
from .kv_geometry import kv_groups, state_groups


@dataclass(frozen=True)
class StageParts:
    """A stage's module and programs, and its parts of weights, KV caches and recurrent states."""

    module: ir.Module
    programs: tuple[Program, ...]
    weights: tuple[Weight, ...]
    groups: tuple[KvGroup, ...]
    states: tuple[StateGroup, ...]


@dataclass(frozen=True)
class StageCosts:
    """Work of a step at each bucket, of one stage or of all; as in `plans.schema.Performance`."""

    rows: tuple[CostRow, ...]
    attention_flops_per_token_pair: float
    kv_bytes_per_token: float


def parts_of_stages(
    stages: Sequence[ir.Module],
    programs: Sequence[Program],
    weights: tuple[Weight, ...],
    groups: tuple[KvGroup, ...],
    states: tuple[StateGroup, ...],
) -> list[StageParts]:
    """`programs` are a step program for each stage and, of the last one, those that follow."""
    if len(stages) == 1:
        return [StageParts(stages[0], tuple(programs), weights, groups, states)]
    found: list[StageParts] = []
    for number, module in enumerate(stages):
        own = programs[number:] if number == len(stages) - 1 else programs[number : number + 1]
        caches = {layer for group in kv_groups(module) for layer in group.layers}
        recurrent = {layer for group in state_groups(module, 1) for layer in group.layers}
        found.append(
            StageParts(
                module,
                tuple(own),
                weights_of_stage(weights, _read(module)),
                groups_of_stage(groups, _parts(groups, caches)),
                groups_of_stage(states, _parts(states, recurrent)),
            )
        )
    return found


def stage_sections(parts: Sequence[StageParts], memories: Sequence[MemoryPlan], costs: Sequence[StageCosts]) -> tuple[Stage, ...]:
    """The manifest's `stages`."""
    found: list[Stage] = []
    first = 0
    for part, memory, cost in zip(parts, memories, costs, strict=True):
        layers = sum(len(unit.layers) for unit in units(modules.step_block(part.module)))
        found.append(
            Stage(
                first=first,
                layers=layers,
                weights=_read(part.module),
                groups=tuple(StagePart(name=group.name, layers=group.layers) for group in part.groups),
                states=tuple(StagePart(name=group.name, layers=group.layers) for group in part.states),
                receives=crossings_of(part.programs[0], RECEIVE),
                sends=crossings_of(part.programs[0], SEND),
                memory=memory,
                step_costs=cost.rows,
                attention_flops_per_token_pair=cost.attention_flops_per_token_pair,
                kv_bytes_per_token=cost.kv_bytes_per_token,
            )
        )
        first += layers
    return tuple(found)


def whole_costs(stages: Sequence[StageCosts]) -> StageCosts:
    """Of a step that goes through all stages."""
    return StageCosts(
        rows=tuple(map(_together, zip(*(stage.rows for stage in stages), strict=True))),
        attention_flops_per_token_pair=sum(stage.attention_flops_per_token_pair for stage in stages),
        kv_bytes_per_token=sum(stage.kv_bytes_per_token for stage in stages),
    )


def shared_programs(program: Program, steps: Sequence[Program]) -> Iterator[tuple[Program, int]]:
    """Earlier step programs that are this one but for the layers they begin with, and how much later this one's are."""
    firsts = [item.first for item in program.body if isinstance(item, Repeat)]
    for other in steps:
        if other is program:
            return
        others = [item.first for item in other.body if isinstance(item, Repeat)]
        if firsts and others and shifted(other, program.name, program.rank, firsts[0] - others[0]) == program:
            yield other, firsts[0] - others[0]


def _together(rows: Iterable[CostRow]) -> CostRow:
    found = list(rows)
    return CostRow(
        rows=found[0].rows,
        flops=sum(row.flops for row in found),
        weight_bytes=sum(row.weight_bytes for row in found),
        activation_bytes=sum(row.activation_bytes for row in found),
        instructions=sum(row.instructions for row in found),
        communication=sum(row.communication for row in found),
        attention_share=min(row.attention_share for row in found),
        attention_rows=max(row.attention_rows for row in found),
        products_share=_ratio(sum(row.flops for row in found), sum(row.flops / row.products_share for row in found)),
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 1.0


def _read(module: ir.Module) -> tuple[StagePart, ...]:
    """The weights that a module reads, by name."""
    found: dict[str, set[int]] = {}
    for operation in modules.walk(modules.step_block(module)):
        if operation.name == "ts.weight":
            found.setdefault(modules.text_attribute(operation, "sym"), set()).update(layers_of(operation))
    return tuple(StagePart(name=name, layers=tuple(sorted(layers))) for name, layers in sorted(found.items()))


def _parts(groups: Sequence[KvGroup] | Sequence[StateGroup], layers: set[int]) -> tuple[StagePart, ...]:
    """Of each group the layers that there are."""
    of_groups = ((group.name, tuple(layer for layer in group.layers if layer in layers)) for group in groups)
    return tuple(StagePart(name=name, layers=own) for name, own in of_groups if own)
