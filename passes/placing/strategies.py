"""Every way in which an operation may run along one mesh axis, from its sharding rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...ir import module as modules
from ...ir.mlir import ir
from ...ir.placements import DISPATCHED, GROUPS, OWN, PARTIAL, REPLICATE, Segment, Shard
from ...ir.sharding import EXCHANGES, SUM_COMMUTES, Factor, ShardingRule, has_rows, place_of, rule_of
from ...ir.types import placement_of, shape_of
from .cuts import ELEMENTWISE, cut_of, is_padded

EXPERT_AXES = {"ep", "dp"}
"""Axes along which mixtures are cut between experts; along the others each expert is cut."""

ZERO_SAFE = ELEMENTWISE | {"ts.linear"}
"""Operations that make zeros of the zeros that fill up a cut dimension, or add nothing for them."""


ROUTING = ELEMENTWISE | {"ts.linear", "ts.moe_route"}
"""Operations that routers are made of. Groups may each do those of all rows, where that is cheaper than to gather routes too."""

ROWS = "r"
"""The factor that rows are in rules."""


@dataclass(frozen=True)
class Strategy:
    """Placements of an operation's operands and results on one axis. `cut` is the factor that is cut, "" for none."""

    cut: str
    operands: tuple[str, ...]
    results: tuple[str, ...]

    @property
    def summary(self) -> str:
        """In words: what is cut, and what comes out."""
        return f"{self.cut or 'nothing'} cut: {', '.join(self.results)}"


def strategies(operation: ir.Operation, axis: str, ranks: int) -> list[Strategy]:
    """The ways that the operation's rule and sizes allow along an axis of so many ranks, replicated first.

    What a repeat carries lies alike all along. Groups have rows of their own, but for mixtures, whose experts they may share out.
    """
    if axis == GROUPS:
        return _of_groups(operation, ranks)
    if operation.name == "ts.repeat":
        count = len(operation.operands)
        return [Strategy(cut, (where,) * count, (where,) * count) for cut, where in (("", REPLICATE), (ROWS, str(Shard(0))))]
    rule = rule_of(operation)
    found = [Strategy("", (REPLICATE,) * len(operation.operands), (REPLICATE,) * len(operation.results))]
    if operation.name in SUM_COMMUTES:
        beside = operation.name in {"ts.gather_rows", *EXCHANGES}
        parts = [REPLICATE if beside and at else PARTIAL for at in range(len(operation.operands))]
        found.append(Strategy("", tuple(parts), (PARTIAL,) * len(operation.results)))
    if operation.name == "ts.moe_experts" and axis in EXPERT_AXES:
        return found + _shared_out(operation, ranks)
    names = [name for name in rule.cuttable if operation.name != "ts.moe_experts" or name != "e"]
    found += [way for name in names if (way := _cut(operation, rule, name, ranks)) is not None]
    if operation.name == "ts.slice" and (way := _cut_windows(operation, ranks)) is not None:
        found.append(way)
    return found


def _of_groups(operation: ir.Operation, ranks: int) -> list[Strategy]:
    found = [own_rows(operation)]
    if operation.name == "ts.moe_experts" and ranks > 1:
        found += _shared_out(operation, ranks)
    if operation.name in ROUTING and ranks > 1:
        found.append(Strategy("", (REPLICATE,) * len(operation.operands), (REPLICATE,) * len(operation.results)))
    return found


def _shared_out(operation: ir.Operation, ranks: int) -> list[Strategy]:
    """Experts cut whole: each rank has all rows, or those that go to its experts, and what becomes of them travels back."""
    shared = _cut(operation, rule_of(operation), "e", ranks)
    if shared is None:
        return []
    experts, before = operation.operands[4], placement_of(operation.operands[4]).values()
    if (shape_of(experts)[0] or 0) < ranks or str(Shard(0)) in before:
        return [shared]
    return [shared, Strategy("e", (DISPATCHED, *shared.operands[1:]), (DISPATCHED,))]


def own_rows(operation: ir.Operation) -> Strategy:
    """Each rank with rows of its own."""

    def placed(values: Sequence[ir.Value]) -> tuple[str, ...]:
        return tuple(OWN if has_rows(value) else REPLICATE for value in values)

    return Strategy("", placed([*operation.operands]), placed([*operation.results]))


def _cut(operation: ir.Operation, rule: ShardingRule, name: str, ranks: int) -> Strategy | None:
    pattern = _pattern(operation, rule, name, ranks)
    if pattern is None:
        return None
    summed = all(place_of(factors, name) is None for factors in rule.results)
    if summed and (pattern.copies > 1 or any(segment.copies > 1 for segment in pattern.segments)):
        return None  # each copy would be added
    operands: list[str] = []
    for position, (value, factors) in enumerate(zip(operation.operands, rule.operands, strict=True)):
        at = place_of(factors, name)
        if at is None:
            added = summed and position in rule.added
            if added and not is_weight(value):
                return None
            operands.append(PARTIAL if added else REPLICATE)
            continue
        cut = _operand_cut(value, at, factors[at], pattern, ranks)
        if cut is None or (is_padded(cut, shape_of(value)[at] or 0, ranks) and not _is_zero_safe(operation, name)):
            return None
        operands.append(str(cut))
    places = [place_of(factors, name) for factors in rule.results]
    return Strategy(name, tuple(operands), tuple(PARTIAL if at is None else str(pattern.along(at)) for at in places))


def _operand_cut(value: ir.Value, at: int, factor: Factor, pattern: Shard, ranks: int) -> Shard | None:
    """How an operand is cut so that its factor has the pattern; None where it cannot be."""
    size = shape_of(value)[at] or 0
    if is_weight(value):
        if factor.stretches == 1:
            return pattern.along(at)
        share, rest = divmod(size, factor.stretches * ranks)
        return None if rest else Shard(at, segments=(Segment(share),) * factor.stretches)
    cut = cut_of(value, at, ranks)
    return cut if cut is not None and (factor.copies or cut == pattern.along(at)) else None


def _pattern(operation: ir.Operation, rule: ShardingRule, name: str, ranks: int) -> Shard | None:
    """The cut of the factor: as activations that have it are cut, those of which others may have copies first."""
    for values, sides in ((operation.results, rule.results), (operation.operands, rule.operands)):
        for value, factors in zip(values, sides, strict=True):
            at = place_of(factors, name)
            if at is not None and not is_weight(value) and not factors[at].copies:
                cut = cut_of(value, at, ranks)
                whole = operation.name in {"ts.attention", "ts.rope_kv_write", "ts.cached_attention"}
                return None if cut is None or (whole and cut.copies > 1) else replace(cut, dimension=0)
    sizes = [
        (shape_of(value)[at] or 0) // factors[at].stretches
        for value, factors in zip(operation.operands, rule.operands, strict=True)
        if (at := place_of(factors, name)) is not None
    ]
    return Shard(0) if _is_zero_safe(operation, name) or all(size % ranks == 0 for size in sizes) else None


def _is_zero_safe(operation: ir.Operation, name: str) -> bool:
    """Whether zeros may fill up the last parts of a factor."""
    return operation.name in ZERO_SAFE or (operation.name == "ts.moe_experts" and name == "e")


def _cut_windows(operation: ir.Operation, ranks: int) -> Strategy | None:
    """A window of columns that are cut window by window."""
    x, window = operation.operands[0], operation.results[0]
    if len(shape_of(x)) != 2:
        return None
    whole, part = cut_of(x, 1, ranks), cut_of(window, 1, ranks)
    if whole is None or not whole.segments or part is None:
        return None
    return Strategy("n", (str(whole),), (str(part),))


def is_weight(value: ir.Value) -> bool:
    """Whether a value is read from the checkpoint, and may be read in any placement."""
    maker = modules.maker_of(value)
    return maker is not None and maker.name == "ts.weight"
