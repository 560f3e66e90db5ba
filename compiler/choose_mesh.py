"""`--parallel auto`: of all meshes of the devices, the one whose layout is predicted to serve the expected traffic fastest.

Each mesh is a candidate. First a bound: its weights can be no smaller, its steps no faster, than if all that an axis can share
out were shared out evenly and nothing was ever exchanged. Then, in the order of what these bounds promise, layouts are searched
as for a mesh that the user names, until no bound promises more than the best one found. It stops on counts, never on time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor, prod
from typing import NoReturn

import msgspec

from ..ir import module as modules
from ..ir.mlir import ir
from ..ir.types import dtype_of, shape_of
from ..passes.partition import partition
from ..passes.placing.costs import Prices
from ..passes.placing.pins import Pins
from ..passes.select import times_of
from ..plans.errors import MemoryPlanError
from ..plans.mesh import GROUPS, STAGES, groups_of, stages_of
from ..plans.perf_model import predict_stages
from ..plans.program import DTYPE_BYTES, DType
from ..plans.schema import MeshAxis, MeshCandidate, Performance, Schedule
from ..plans.units import format_bytes
from ..targets.collective import crossing_seconds
from ..targets.machine import Machine
from .kv_geometry import kv_groups
from .memory import BLOCK_TOKENS, COMMUNICATION, bytes_per_block
from .mesh import AXES, ONE_RANK, without_stages
from .performance import attention_flops, cost_rows, rates_of

MOST_SEARCHED = 16
"""Candidates whose layouts are searched."""

_FULL = 1.1
"""What of a pipeline's prediction is given up: it is of stages that are never idle."""

_ALIKE = 1.01
"""Throughputs that differ by less are the same: then what answers sooner is taken."""


@dataclass(frozen=True)
class Setting:
    """What candidates are judged by.

    `parse` gives the raised module anew, `prices` are of a mesh. `memory` is of a device in bytes (None: no limit), `stored` the
    share of their size that weights are stored in, `kv_dtype` what keys and values are kept as (None: the model's type).
    """

    parse: Callable[[], ir.Module]
    machine: Machine
    dtype: str
    limits: Schedule
    max_context: int
    prices: Callable[[Sequence[MeshAxis]], Prices]
    pins: Pins
    memory: int | None
    stored: float
    kv_dtype: DType | None
    native: bool


@dataclass(frozen=True)
class _Work:
    """Of one rank: what its steps cost, bytes of its weights, of experts among them, those kept of a token, and those of the
    largest values at once; bytes of a row between layers."""

    performance: Performance
    weights: float
    experts: float
    kept: float
    activations: float
    row_bytes: float


def choose_mesh(setting: Setting, devices: int) -> tuple[tuple[MeshAxis, ...], tuple[MeshCandidate, ...]]:
    """The best mesh of `devices` ranks, and all that were compared, best first.

    Raises MemoryPlanError when the model fits in none.
    """
    whole = setting.parse()
    partition(whole, ONE_RANK)
    mixture = any(operation.name == "ts.moe_experts" for operation in modules.walk(modules.step_block(whole)))
    alone = _work(whole, setting)
    bounds = sorted(
        (_bound(mesh, alone, setting) for mesh in meshes(devices, experts=mixture, pinned=bool(setting.pins.pins))),
        key=lambda candidate: -candidate.output_tokens_per_second,
    )
    found: list[MeshCandidate] = []
    left = MOST_SEARCHED
    for bound in bounds:
        best = max((_worth(item) for item in found if item.basis == "searched"), default=0.0)
        if bound.basis == "does not fit" or left == 0 or _worth(bound) <= best:
            found.append(bound)
            continue
        found.append(_searched(bound.mesh, setting))
        left -= found[-1].basis == "searched"
    ranked = sorted(found, key=_rank)
    fitting = [item for item in ranked if item.basis == "searched"]
    if not fitting:
        _refuse(ranked, devices, setting)
    most = max(map(_worth, fitting))
    near = [item for item in fitting if _worth(item) * _ALIKE >= most]
    best = min(near, key=lambda item: (item.tpot_seconds, stages_of(item.mesh)))
    return best.mesh, (best, *(item for item in ranked if item is not best))


def meshes(devices: int, *, experts: bool, pinned: bool) -> Iterator[tuple[MeshAxis, ...]]:
    """All meshes of so many ranks over the axes that work. Only with `experts` is `ep` another axis than `tp`; what is `pinned`
    is about axes that cut weights, so that meshes without one are no answer."""
    names = [axis.name for axis in AXES if axis.works and (experts or axis.name != "ep")]
    for sizes in _products(devices, len(names)):
        mesh = tuple(MeshAxis(name=name, size=size) for name, size in zip(names, sizes, strict=True) if size > 1)
        if not pinned or any(axis.name not in (GROUPS, STAGES) for axis in mesh):
            yield mesh or ONE_RANK


def _products(number: int, count: int) -> Iterator[tuple[int, ...]]:
    """All ways of writing a number as a product of so many, in order."""
    if count == 1:
        yield (number,)
        return
    for first in range(1, number + 1):
        if number % first == 0:
            yield from ((first, *rest) for rest in _products(number // first, count - 1))


def _work(module: ir.Module, setting: Setting) -> _Work:
    """Of a module as one rank has it."""
    machine, limits = setting.machine, setting.limits
    block = bytes_per_block(kv_groups(module, setting.kv_dtype))
    weights = experts = activations = row = 0.0
    for operation in modules.walk(modules.step_block(module)):
        if operation.name == "ts.weight":
            size = _bytes(operation.results[0], 1) * times_of(operation)
            weights += size
            experts += size * any(user.name == "ts.moe_experts" for user, _ in modules.readers_of(operation.results[0]))
        elif not operation.regions:
            values = [value for value in (*operation.operands, *operation.results) if shape_of(value)[:1] == [None]]
            activations = max(activations, sum(_bytes(value, limits.max_rows) for value in values))
        if operation.name == "ts.embedding":
            row = _bytes(operation.results[0], 1)
    decode = max(1, min(limits.max_decode_rows, round(limits.traffic["concurrency"])))
    points = {1, decode, limits.max_decode_rows, limits.prefill_chunk, limits.max_rows}
    sizes = {rows: min(rows, limits.max_sequences) for rows in points}
    rates = rates_of(machine, setting.dtype, native=setting.native)
    performance = Performance(
        rates=rates,
        step_costs=cost_rows(module, machine, sizes),
        attention_flops_per_token_pair=attention_flops(module),
        kv_bytes_per_token=block / BLOCK_TOKENS,
        predictions={},
    )
    return _Work(performance, weights * setting.stored, experts * setting.stored, block / BLOCK_TOKENS, activations, row)


def _bytes(value: ir.Value, rows: int) -> float:
    return float(prod(rows if size is None else size for size in shape_of(value)) * DTYPE_BYTES[dtype_of(value)])


def _bound(mesh: Sequence[MeshAxis], alone: _Work, setting: Setting) -> MeshCandidate:
    """What no layout over this mesh can be better than. Groups may share out experts."""
    groups = groups_of(mesh)
    cut = prod(axis.size for axis in mesh) / groups / stages_of(mesh)
    performance = _divided(alone.performance, cut, cut * groups if alone.experts else cut)
    weights = (alone.weights - alone.experts) / cut + alone.experts / cut / groups
    return _candidate(mesh, _Work(performance, weights, 0.0, alone.kept / cut, 0.0, 0.0), setting, searched=False)


def _divided(performance: Performance, by: float, weights_by: float, instructions_by: int = 1) -> Performance:
    """With a share of the work, and of the traffic of weights."""
    costs = (
        msgspec.structs.replace(
            row,
            flops=row.flops / by,
            weight_bytes=row.weight_bytes / weights_by,
            activation_bytes=row.activation_bytes / by,
            instructions=ceil(row.instructions / instructions_by),
            communication=row.communication / instructions_by,
        )
        for row in performance.step_costs
    )
    return msgspec.structs.replace(
        performance,
        step_costs=tuple(costs),
        attention_flops_per_token_pair=performance.attention_flops_per_token_pair / by,
        kv_bytes_per_token=performance.kv_bytes_per_token / by,
    )


def _handing_on(performance: Performance, row_bytes: float, machine: Machine) -> Performance:
    """With the time that a stage's rows take to the next."""
    costs = (
        msgspec.structs.replace(row, communication=row.communication + crossing_seconds(row.rows * row_bytes, machine))
        for row in performance.step_costs
    )
    return msgspec.structs.replace(performance, step_costs=tuple(costs))


def _searched(mesh: Sequence[MeshAxis], setting: Setting) -> MeshCandidate:
    module = setting.parse()
    try:
        partition(module, without_stages(mesh), setting.prices(mesh), setting.pins)
    except MemoryPlanError as error:
        return _failed(mesh, error.what)
    return _candidate(mesh, _work(module, setting), setting, searched=True)


def _candidate(mesh: Sequence[MeshAxis], work: _Work, setting: Setting, *, searched: bool) -> MeshCandidate:
    """Stages are as good as can be: equally heavy."""
    stages, groups = stages_of(mesh), groups_of(mesh)
    traffic = setting.limits.traffic
    weights, kept = work.weights / stages, work.kept / stages
    tokens = None
    sequences = traffic["concurrency"]
    if setting.memory is not None:
        ranks = prod(axis.size for axis in mesh)
        left = setting.memory - weights - work.activations - setting.machine.overhead_bytes - COMMUNICATION * (ranks > 1)
        if left < kept * setting.max_context:
            what = f"{format_bytes(int(weights))} of weights leave no room for keys and values of one context"
            return _failed(mesh, what, weights)
        tokens = floor(left / kept) * groups if kept else None
        if tokens is not None:
            sequences = min(sequences, max(1.0, tokens / (traffic["prompt_tokens"] + traffic["output_tokens"])))
    stage = _divided(work.performance, stages, stages, stages)
    if stages > 1:
        stage = _handing_on(stage, work.row_bytes, setting.machine)
    each = [stage] * stages
    found = predict_stages(each, setting.limits, {**traffic, "concurrency": sequences}, min(groups, ceil(sequences)))
    return MeshCandidate(
        mesh=tuple(mesh),
        basis="searched" if searched else "bound",
        weight_bytes=weights,
        tokens=tokens,
        output_tokens_per_second=found["output_tokens_per_second"],
        tpot_seconds=found["tpot_seconds"],
        ttft_seconds=found["ttft_seconds"],
    )


def _failed(mesh: Sequence[MeshAxis], why: str, weights: float = 0.0) -> MeshCandidate:
    return MeshCandidate(mesh=tuple(mesh), basis="does not fit", weight_bytes=weights, reason=why)


def _worth(candidate: MeshCandidate) -> float:
    return candidate.output_tokens_per_second / (_FULL if stages_of(candidate.mesh) > 1 else 1.0)


def _rank(candidate: MeshCandidate) -> tuple[int, float]:
    order = {"searched": 0, "bound": 1, "does not fit": 2}
    return order[candidate.basis], -candidate.output_tokens_per_second


def _refuse(candidates: Sequence[MeshCandidate], devices: int, setting: Setting) -> NoReturn:
    least = min((candidate.weight_bytes for candidate in candidates if candidate.weight_bytes), default=0.0)
    raise MemoryPlanError(
        "the model does not fit on these devices, however it is laid out",
        where="--target, --memory",
        expected=f"more than {format_bytes(int(least))} on each, for weights, and room for keys and values of one context",
        got=f"{format_bytes(setting.memory or 0)} on each of {devices}",
        fix="more devices (--target NAME:DEVICES), smaller weights (--quantize), or a smaller --max-context",
    )
