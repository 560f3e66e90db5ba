"""A plan as the ranks of one stage of a pipeline have it: with that stage's part of weights, caches, memory and costs alone."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TypeVar

import msgspec

from .kv_caches import pool_block_bytes
from .program import Program, Repeat
from .schema import Crossing, KvGroup, Manifest, Performance, Stage, StagePart, StateGroup, Weight

SEND, RECEIVE = "send", "receive"
"""Functions by which step programs cross from a stage to the next."""

_Group = TypeVar("_Group", KvGroup, StateGroup)


def stage_of(manifest: Manifest, rank: int) -> int:
    """The number of the stage that a rank is of. Stages are the outermost axis: their ranks follow each other."""
    return rank // max(1, prod(axis.size for axis in manifest.mesh) // max(1, len(manifest.stages)))


def of_rank(manifest: Manifest, rank: int) -> Manifest:
    """The manifest as a rank has it; the same one where there are no stages."""
    return of_stage(manifest, stage_of(manifest, rank)) if manifest.stages else manifest


def of_stage(manifest: Manifest, number: int) -> Manifest:
    """The manifest as the ranks of a stage have it: without `stages`, and with programs of those ranks alone."""
    stage = manifest.stages[number]
    groups = groups_of_stage(manifest.kv.groups, stage.groups)
    states = groups_of_stage(manifest.kv.states, stage.states)
    per_block = pool_block_bytes(groups, manifest.kv.block_tokens, len(manifest.kv.windows))
    windows = tuple(
        msgspec.structs.replace(pool, bytes_per_block=size) for pool, size in zip(manifest.kv.windows, per_block[1:], strict=True)
    )
    return msgspec.structs.replace(
        manifest,
        stages=(),
        programs=tuple(item for item in manifest.programs if stage_of(manifest, item.rank) == number),
        weights=weights_of_stage(manifest.weights, stage.weights),
        kv=msgspec.structs.replace(manifest.kv, groups=groups, states=states, bytes_per_block=per_block[0], windows=windows),
        memory=stage.memory,
        performance=performance_of(manifest, stage),
    )


def performance_of(manifest: Manifest, stage: Stage) -> Performance:
    """What a stage takes of a step (plans/perf_model.py)."""
    return msgspec.structs.replace(
        manifest.performance,
        step_costs=stage.step_costs,
        attention_flops_per_token_pair=stage.attention_flops_per_token_pair,
        kv_bytes_per_token=stage.kv_bytes_per_token,
    )


def crossings_of(program: Program, function: str) -> tuple[Crossing, ...]:
    """What a step program sends (`function` "send") or receives ("receive"), in order; operands that are no views or buffers have
    no shape."""
    buffers = {buffer.name: buffer for buffer in program.buffers}
    views = {view.name: view for view in program.views}
    found: list[Crossing] = []
    for call in program.calls:
        if call.function != function:
            continue
        (name,) = (*call.inputs, *call.outputs)
        view, buffer = views.get(name), buffers.get(views[name].base if name in views else name)
        shape = () if buffer is None else buffer.shape if view is None else view.shape
        found.append(
            Crossing(
                name=str(call.attributes.get("value")),
                dtype="u8" if buffer is None else buffer.dtype,
                shape=tuple(size for size in shape[1:] if isinstance(size, int)),
                rows=str(shape[0]) if shape else "",
            )
        )
    return tuple(found)


def shifted(program: Program, name: str, rank: int, shift: int) -> Program:
    """A program as another stage has it, whose layers begin `shift` later."""
    if not shift and program.name == name:
        return program
    body = tuple(
        msgspec.structs.replace(item, first=item.first + shift) if isinstance(item, Repeat) else item for item in program.body
    )
    return msgspec.structs.replace(program, name=name, rank=rank, body=body)


def weights_of_stage(weights: Sequence[Weight], parts: Sequence[StagePart]) -> tuple[Weight, ...]:
    """What is listed of weights, cut to a stage's parts."""
    layers_of = {part.name: frozenset(part.layers) for part in parts}
    found: list[Weight] = []
    for weight in weights:
        if weight.name not in layers_of:
            continue
        layers = tuple(layer for layer in weight.layers if layer in layers_of[weight.name])
        if layers or not weight.layers:
            found.append(msgspec.structs.replace(weight, layers=layers))
    return tuple(found)


def groups_of_stage(groups: Sequence[_Group], parts: Sequence[StagePart]) -> tuple[_Group, ...]:
    """The same of KV groups, or of recurrent states."""
    layers_of = {part.name: part.layers for part in parts}
    return tuple(msgspec.structs.replace(group, layers=layers_of[group.name]) for group in groups if group.name in layers_of)
