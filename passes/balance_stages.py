"""balance: where a pipeline's stages are cut, so that the slowest takes as little time as can be.

An exact search, by dynamic programming over the layer units. Of all cuts whose slowest stage is within a hundredth of the
fastest such, the one whose fullest stage leaves most room for keys and values, since all stages keep those of as many tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf, prod

from ..ir import module as modules
from ..ir.mlir import ir
from ..ir.storage import stored_type
from ..ir.types import dtype_of, shape_of
from ..plans.errors import MemoryPlanError, UsageError
from ..plans.program import DTYPE_BYTES
from ..plans.units import format_bytes
from ..plans.weight_layout import stored_bytes
from ..targets.machine import Machine
from .layer_units import repeats_of, top_of
from .select import Workload, logit_operations, predicted_seconds

_SLACK = 1.01
_STORES = {"ts.attention": (1, 2), "ts.latent_attention": (2, 3), "ts.rope_kv_write": (1, 2)}
"""Operations that keep rows of some operands in a cache."""


@dataclass(frozen=True)
class UnitCost:
    """What a stretch of layers takes on each rank: seconds of an expected step, bytes of weights, bytes kept of each token."""

    seconds: float = 0.0
    weights: float = 0.0
    kept: float = 0.0

    def __add__(self, other: UnitCost) -> UnitCost:
        return UnitCost(self.seconds + other.seconds, self.weights + other.weights, self.kept + other.kept)

    def __sub__(self, other: UnitCost) -> UnitCost:
        return UnitCost(self.seconds - other.seconds, self.weights - other.weights, self.kept - other.kept)


@dataclass(frozen=True)
class StepCosts:
    """Of what comes before the layers, of each layer unit, and of what comes behind them."""

    before: UnitCost
    units: tuple[UnitCost, ...]
    behind: UnitCost

    def stages(self, cuts: Sequence[int]) -> list[UnitCost]:
        """The cost of each stage."""
        totals = [*accumulate(self.units, initial=UnitCost())]
        found = [totals[stop] - totals[start] for start, stop in zip([0, *cuts], [*cuts, len(self.units)], strict=True)]
        found[0] += self.before
        found[-1] += self.behind
        return found


def step_costs(module: ir.Module, machine: Machine, loads: Sequence[Workload], context: float, kept_as: str | None) -> StepCosts:
    """Costs of a step whose kernels are chosen. `context` tokens are cached of each sequence, kept as `kept_as` (None: in the
    type they have)."""
    block = modules.step_block(module)
    after_gather, repeats = logit_operations(block), repeats_of(block)
    outside = [UnitCost(), UnitCost()]
    inside = dict.fromkeys(repeats, UnitCost())
    behind = _behind(block)
    for operation in modules.walk(block):
        if "kernel" not in operation.attributes and operation.name != "ts.weight":
            continue
        cost = _of_operation(operation, machine, loads, context, kept_as, operation in after_gather)
        top = top_of(operation)
        if top in inside:
            inside[top] += cost
        elif operation.name == "ts.weight":
            # tied embeddings are on both ends
            for side in {top_of(reader) in behind for reader, _ in modules.readers_of(operation.results[0])}:
                outside[side] += cost
        else:
            outside[top in behind] += cost
    found = [inside[repeat] for repeat in repeats for _ in range(modules.int_attribute(repeat, "count"))]
    return StepCosts(outside[0], tuple(found), outside[1])


def balance(costs: StepCosts, stages: int, memory: float | None, tokens: float, kept_together: Collection[int] = ()) -> list[int]:
    """The cuts, as `split_stages` takes them; none of `kept_together`. A stage's weights and what it keeps of `tokens` tokens fit
    in `memory` bytes.

    Raises UsageError where there are too few layers to cut between, MemoryPlanError where no cuts fit.
    """
    count = len(costs.units)
    allowed = [cut for cut in range(1, count) if cut not in kept_together]
    if len(allowed) < stages - 1:
        raise UsageError(
            "there are too few borders between layers for so many stages",
            where="--parallel",
            expected=f"pp of at most {len(allowed) + 1}: {count} stretches of layers"
            + (f", of which {count - 1 - len(allowed)} borders lie between layers that share a cache" if kept_together else ""),
            got=f"pp={stages}",
            fix="fewer stages",
        )
    totals = [*accumulate(costs.units, initial=UnitCost())]

    def stage(start: int, stop: int) -> UnitCost:
        found = totals[stop] - totals[start]
        found = costs.before + found if start == 0 else found
        return found + costs.behind if stop == count else found

    def bytes_of(start: int, stop: int) -> float:
        return stage(start, stop).weights + stage(start, stop).kept * tokens

    def seconds(start: int, stop: int) -> float:
        return stage(start, stop).seconds if memory is None or bytes_of(start, stop) <= memory else inf

    least, cuts = _minimax(seconds, count, stages, allowed)
    if least == inf:
        needed, _ = _minimax(bytes_of, count, stages, allowed)
        raise MemoryPlanError(
            "no cut of the layers into stages fits in the memory of a rank",
            where="--target, --memory, --parallel",
            expected=f"at least {format_bytes(int(needed))}, for weights and keys and values of {int(tokens)} tokens",
            got=format_bytes(int(memory or 0)),
            fix="more stages or ranks, or smaller weights (--quantize)",
        )

    def fullness(start: int, stop: int) -> float:
        if seconds(start, stop) > least * _SLACK:
            return inf
        found = stage(start, stop)
        if memory is None or not found.kept:
            return bytes_of(start, stop)
        return -(memory - found.weights) / found.kept

    return _minimax(fullness, count, stages, allowed)[1] if stages > 1 else cuts


def _minimax(cost: Callable[[int, int], float], count: int, stages: int, allowed: Sequence[int]) -> tuple[float, list[int]]:
    """Cuts of `count` units into stages whose largest cost is least, and that cost; of equal ones the earliest cuts."""
    best: dict[int, tuple[float, list[int]]] = {0: (-inf, [])}
    for number in range(stages):
        ends = [count] if number == stages - 1 else allowed
        found: dict[int, tuple[float, list[int]]] = {}
        for stop in ends:
            for start, (before, cuts) in best.items():
                if start < stop:
                    largest = max(before, cost(start, stop))
                    if stop not in found or largest < found[stop][0]:
                        found[stop] = largest, [*cuts, stop]
        best = found
    value, cuts = best[count]
    return value, cuts[:-1]


def _behind(block: ir.Block) -> set[ir.Operation]:
    """What comes after the last layer."""
    operations = [view.operation for view in block.operations]
    last = max((at for at, operation in enumerate(operations) if operation.name == "ts.repeat"), default=-1)
    return {*operations[last + 1 :]}


def _of_operation(
    operation: ir.Operation, machine: Machine, loads: Sequence[Workload], context: float, kept_as: str | None, after_gather: bool
) -> UnitCost:
    if operation.name == "ts.weight":
        value = operation.results[0]
        shape = [size or 0 for size in shape_of(value)]
        return UnitCost(weights=stored_bytes(shape, stored_type(operation, dtype_of(value)), "none"))
    rows = [load.logit_rows if after_gather else load.rows for load in loads]
    seconds = [predicted_seconds(operation, machine, count) for count in rows]
    read = _read_of_token(operation, kept_as)
    if read:
        window = modules.int_attribute(operation, "window") if "window" in operation.attributes else 0
        tokens = min(context, window) if window else context
        bandwidth = machine.rates["bandwidth"].value
        seconds = [took + load.logit_rows * tokens * read / bandwidth for took, load in zip(seconds, loads, strict=True)]
    expected = sum(load.share * took for load, took in zip(loads, seconds, strict=True))
    kept = sum(_row_bytes(operation.operands[at], kept_as) for at in _STORES.get(operation.name, ()))
    return UnitCost(seconds=expected, kept=kept)


def _read_of_token(operation: ir.Operation, kept_as: str | None) -> float:
    """Bytes that attention reads of each token in the cache."""
    if operation.name == "ts.cached_attention":
        size = DTYPE_BYTES[kept_as or dtype_of(operation.operands[0])]
        return 2.0 * modules.int_attribute(operation, "kv_heads") * (shape_of(operation.operands[0])[2] or 0) * size
    if operation.name in {"ts.attention", "ts.latent_attention"}:
        return sum(_row_bytes(operation.operands[at], kept_as) for at in _STORES[operation.name])
    return 0.0


def _row_bytes(value: ir.Value, kept_as: str | None) -> float:
    return float(prod(size or 1 for size in shape_of(value)) * DTYPE_BYTES[kept_as or dtype_of(value)])
