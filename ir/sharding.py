"""One sharding rule per operation, einsum-like, read alike by propagation, collective insertion and the SPMD verifier.

A rule names each dimension of each operand and result by a factor. A mesh axis may cut one factor: every operand that has
the factor is sharded there, every other operand is replicated. If the result has the factor it is sharded too; if not,
the factor was summed over and the result is partial. Factors after `|` may not be cut. `...` stands for middle dimensions.

`2*i` is two stretches of the factor behind each other, each cut by itself. Ranks may hold a factor `h~` in copies where they
hold others' `h` in parts. An operand `n+` is added to the result: where the result is partial, it must be so too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from . import attributes
from .mixture import numbers_of
from .mlir import ir
from .placements import DISPATCHED, GROUPS, NESTING, OWN, PARTIAL, REPLICATE, Segment, Shard, parse_shard, part_of
from .types import shape_of

_RULES = {
    # ids outside of a rank's part of the vocabulary would have no row
    "ts.embedding": "r, v h -> r h | v",
    "ts.linear": "r k, n k, n+ -> r n",
    "ts.rms_norm": "r ... h, h -> r ... h | h",
    "ts.add_rms_norm": "r h, r h, h -> r h, r h | h",
    "ts.layer_norm": "r ... h, h, h -> r ... h | h",
    "ts.rope_table": "r, f -> r d, r d | f d",
    "ts.rope": "r h d, r e, r e -> r h d | d e",
    "ts.attention": "r h d, r h~ d, r h~ e, h -> r h e | r d e",
    "ts.rope_kv_write": "r h d, r h~ d, r h~ d, r e, r e -> r h d | r d e",
    "ts.cached_attention": "r h d, h -> r h d | r d",
    "ts.gated_activation": "r n, r n -> r n",
    "ts.activation": "r ... -> r ...",
    "ts.scale": "r ... -> r ...",
    "ts.softcap": "r ... -> r ...",
    # the rows of kv_b are its heads' keys and values, head after head
    "ts.latent_attention": "r h n, r h d, r c, r d, h c -> r h v | r n d c v",
    "ts.moe_route": "r e, e -> r k, r k | e k",
    # without numbers of their own, ranks that have some of the experts only cannot tell theirs
    "ts.moe_experts": "r h, r k, r k, e 2*i h, e h i, e 2*i, e h+ -> r h | h k e",
    "ts.cast": "r ... -> r ...",
    "ts.add": "r ..., r ... -> r ...",
    "ts.mul": "r ..., r ... -> r ...",
    "ts.slice": "r ... n -> r ... m | n m",
    "ts.gather_rows": "r ..., l -> l ... | r l",
    "ts.all_reduce": "r ... -> r ...",
    "ts.all_gather": "r ... -> r ...",
    "ts.reduce_scatter": "r ... -> r ...",
    "ts.take_part": "r ... -> r ...",
    # halves of a rank's own rows are not its part of halves
    "ts.take_rows": "r ... -> r ... | r",
    "ts.join_rows": "r ..., r ... -> r ... | r",
    "ts.dispatch": "r h, r k -> r h | h k",
    "ts.combine": "r h, r k -> r h | h k",
}

_NUMBERED_EXPERTS = {
    6: "r h, r k, r k, e 2*i h, e h i, e -> r h",
    8: "r h, r k, r k, e 2*i h, e h i, e 2*i, e h+, e -> r h",
}
"""By the number of operands, the last of which are the experts' numbers."""

EXCHANGES = {"ts.dispatch", "ts.combine"}
"""Collectives in which rows travel to their experts and back."""

COLLECTIVES = {"ts.all_reduce", "ts.all_gather", "ts.reduce_scatter", *EXCHANGES}
"""Operations in which ranks meet."""

CHANGES = COLLECTIVES | {"ts.take_part"}
"""Operations that are there to change a placement along their own axis."""

SUM_COMMUTES = {"ts.add", "ts.scale", "ts.reshape", "ts.slice", "ts.gather_rows", "ts.take_rows", "ts.join_rows", *CHANGES}
"""Operations that may be applied to a partial sum before it is reduced (all their activations being partial); collectives of
other axes among them."""

BORDERS = {"ts.send", "ts.receive"}
"""Where values leave a stage of a pipeline or enter it, each rank's own; passes/verify_stages.py compares the two sides."""


class PlacementConflict(ValueError):
    """Operand placements that the operation's rule does not allow; says which operand and why."""


@dataclass(frozen=True)
class Factor:
    """A dimension in a rule: `stretches` of it behind each other; whether ranks may have it in `copies`."""

    name: str
    stretches: int = 1
    copies: bool = False


@dataclass(frozen=True)
class ShardingRule:
    """Factors of each operand and result; those that may not be cut; operands that are added to the result."""

    operands: tuple[tuple[Factor, ...], ...]
    results: tuple[tuple[Factor, ...], ...]
    whole: frozenset[str]
    added: frozenset[int] = frozenset()

    @property
    def cuttable(self) -> list[str]:
        """Factors that an axis may cut, in the order in which they are named."""
        names = [factor.name for factors in (*self.operands, *self.results) for factor in factors]
        return [name for name in dict.fromkeys(names) if name not in self.whole]


def rule_of(operation: ir.Operation) -> ShardingRule:
    """The operation's rule at the ranks it has."""
    if operation.name in {"ts.aten", "ts.recurrence"} or (operation.name == "ts.reshape" and max(_ranks(operation)) > 3):
        # nothing is known of where its dimensions go, so none may be cut
        names = [tuple(Factor(f"{value}.{at}") for at in range(rank)) for value, rank in enumerate(_ranks(operation))]
        everything = frozenset(factor.name for part in names for factor in part)
        count = len(operation.operands)
        return ShardingRule(tuple(names[:count]), tuple(names[count:]), everything)
    if operation.name == "ts.reshape":
        # the leading head dimension of [rows, heads, d] is the slow part of [rows, heads * d]
        factors = (Factor("r"), Factor("h"), Factor("d"))
        names = [factors[: len(shape_of(value))] for value in (operation.operands[0], operation.results[0])]
        return ShardingRule((names[0],), (names[1],), frozenset({"d"}))
    text, _, whole = _RULES[operation.name].partition("|")
    if operation.name == "ts.moe_experts" and numbers_of(operation) is not None:
        text, whole = _NUMBERED_EXPERTS[len(operation.operands)], "h k"
    left, right = text.split("->")
    operands = [_factors(part, len(shape_of(value))) for part, value in zip(left.split(","), operation.operands, strict=False)]
    results = [_factors(part, len(shape_of(value))) for part, value in zip(right.split(","), operation.results, strict=True)]
    added = frozenset(at for at, part in enumerate(left.split(",")[: len(operands)]) if "+" in part)
    names = set(whole.split())
    about = _dimension(operation) if operation.name in CHANGES else None
    if about is not None:
        names.add(operands[0][about].name)  # parts of the parts would come in the wrong order
    return ShardingRule(tuple(operands), tuple(results), frozenset(names), added)


def _ranks(operation: ir.Operation) -> list[int]:
    return [len(shape_of(value)) for value in (*operation.operands, *operation.results)]


def _factors(text: str, rank: int) -> tuple[Factor, ...]:
    names = text.replace("+", "").split()
    if "..." in names:
        at = names.index("...")
        middle = [f"m{number}" for number in range(rank - len(names) + 1)]
        names = names[:at] + middle + names[at + 1 :]
    return tuple(_factor(name) for name in names)


def _factor(text: str) -> Factor:
    stretches, _, name = text.rpartition("*")
    return Factor(name.removesuffix("~"), int(stretches or 1), name.endswith("~"))


def place_of(factors: Sequence[Factor], name: str) -> int | None:
    """The dimension that a factor is, None where it is none."""
    return next((at for at, factor in enumerate(factors) if factor.name == name), None)


def results_on_axis(operation: ir.Operation, placements: Sequence[str], axis: str) -> list[str]:
    """Placements of the results along mesh axis `axis`, given those of the operands.

    Raises PlacementConflict when the rule does not allow the operands.
    """
    if operation.name in CHANGES and attributes.text_attribute(operation, "axis") == axis:
        return [_change(operation, placements)]
    if operation.name == "ts.moe_experts" and placements[0] == DISPATCHED:
        return _of_dispatched(operation, placements, axis)
    rule = rule_of(operation)
    if OWN in placements or (axis == GROUPS and needs_own_rows(operation)):
        return _own_results(operation, placements, axis)
    for position, (factors, found) in enumerate(zip(rule.operands, placements, strict=True)):
        cut = parse_shard(found)
        if found not in {REPLICATE, PARTIAL} and (cut is None or cut.dimension >= len(factors)):
            _refuse(operation, position, found, f"no placement of an operand of rank {len(factors)}")
    if operation.name in CHANGES and NESTING.index(axis) < NESTING.index(attributes.text_attribute(operation, "axis")):
        rule = replace(rule, whole=frozenset())  # what this axis cut is cut further by the one that is gathered
    name = _cut_factor(operation, rule, placements)
    summed = name is not None and all(place_of(factors, name) is None for factors in rule.results)
    added = {position for position in rule.added if summed and place_of(rule.operands[position], name or "") is None}
    for position in sorted(added):
        if placements[position] != PARTIAL:
            why = f"factor {name!r} is summed over ranks, so what is added would be added once by each"
            _refuse(operation, position, placements[position], why)
    others = [found for position, found in enumerate(placements) if position not in added]
    if PARTIAL in others:
        if operation.name in SUM_COMMUTES and all(found == PARTIAL for found in _activations(operation, placements)):
            return [PARTIAL] * len(rule.results)
        return [_refuse(operation, list(placements).index(PARTIAL), PARTIAL, "a partial sum must be reduced first")]
    if name is None:
        return [REPLICATE] * len(rule.results)
    return _cut_results(operation, rule, placements, name, added)


def needs_own_rows(operation: ir.Operation) -> bool:
    """Whether an operation has to know whose its rows are, so that it cannot have other ranks' among them: it reads step inputs
    or caches beside its operands, or a row's result depends on other rows."""
    if operation.name in CHANGES:
        return False
    rule = rule_of(operation)
    rows = {factors[0].name for factors, value in zip(rule.operands, operation.operands, strict=True) if has_rows(value)}
    return not rows.isdisjoint(rule.whole)


def has_rows(value: ir.Value) -> bool:
    return None in shape_of(value)


def _own_results(operation: ir.Operation, placements: Sequence[str], axis: str) -> list[str]:
    """Along the axis on which ranks have rows of their own, all operands of rows being so."""
    if axis != GROUPS:
        _refuse(operation, list(placements).index(OWN), OWN, f"no rank has rows of its own along {axis}")
    for position, (value, found) in enumerate(zip(operation.operands, placements, strict=True)):
        expected = OWN if has_rows(value) else REPLICATE
        if found != expected:
            _refuse(operation, position, found, f"ranks have rows of their own, so {expected} is expected")
    return [OWN if has_rows(value) else REPLICATE for value in operation.results]


def _of_dispatched(operation: ir.Operation, placements: Sequence[str], axis: str) -> list[str]:
    """Of rows that are where their experts are: whole experts on each rank."""
    if placements[4] != str(Shard(0)):
        _refuse(operation, 4, placements[4], f"rows were sent to their experts, so {Shard(0)} is expected")
    return results_on_axis(operation, [REPLICATE, *placements[1:]], axis)


def _change(operation: ir.Operation, placements: Sequence[str]) -> str:
    """What a collective makes of its operand along its own axis."""
    part = part_of(attributes.text_attribute(operation, "axis"), _dimension(operation) or 0)
    expected, made = {
        "ts.all_reduce": (PARTIAL, REPLICATE),
        "ts.all_gather": (part, REPLICATE),
        "ts.reduce_scatter": (PARTIAL, part),
        "ts.take_part": (REPLICATE, part),
        "ts.dispatch": (part, DISPATCHED),
        "ts.combine": (PARTIAL, part),
    }[operation.name]
    placement = placements[0]
    if operation.name in EXCHANGES and placements[1] != REPLICATE:
        _refuse(operation, 1, placements[1], "every rank has to know where all rows go")
    if placement != expected:
        what = "a partial sum" if expected == PARTIAL else expected
        _refuse(operation, 0, placement, f"{operation.name.removeprefix('ts.')} here needs {what}")
    return made


def _dimension(operation: ir.Operation) -> int | None:
    """The dimension that a change of placement is about."""
    return attributes.int_attribute(operation, "dimension") if "dimension" in operation.attributes else None


def _cut_results(operation: ir.Operation, rule: ShardingRule, placements: Sequence[str], name: str, added: set[int]) -> list[str]:
    """Placements of the results where an axis cuts the factor `name`: all operands that have it are cut alike."""
    if operation.name == "ts.slice" and place_of(rule.operands[0], name) == len(rule.operands[0]) - 1:
        return [_sliced(operation, placements[0])]
    pattern: Shard | None = None
    for position, (factors, found) in enumerate(zip(rule.operands, placements, strict=True)):
        if position in added:
            continue
        at, cut = place_of(factors, name), parse_shard(found)
        if at is None or cut is None or cut.dimension != at:
            expected = REPLICATE if at is None else str(Shard(at))
            if found != expected:
                _refuse(operation, position, found, f"factor {name!r} is cut, so {expected} is expected")
            continue
        own = _of_factor(operation, position, cut, factors[at])
        if factors[at].copies:
            continue
        if pattern is not None and own != pattern.along(at):
            _refuse(operation, position, found, f"factor {name!r} is cut otherwise, so {pattern.along(at)} is expected")
        pattern = own
    assert pattern is not None
    if operation.name == "ts.reshape" and pattern.segments:
        _refuse(operation, 0, placements[0], "what is cut segment by segment has no other shape")
    kept = any(place_of(factors, name) is not None for factors in rule.results)
    if not kept and {pattern.copies, *(segment.copies for segment in pattern.segments)} != {1}:
        _refuse(operation, 0, placements[0], f"factor {name!r} is summed over ranks of which some have the same part")
    places = [place_of(factors, name) for factors in rule.results]
    return [PARTIAL if at is None else str(pattern.along(at)) for at in places]


def _of_factor(operation: ir.Operation, position: int, cut: Shard, factor: Factor) -> Shard:
    """An operand's cut as one of its factor: stretches of it are cut alike."""
    if factor.stretches == 1:
        return cut
    if len(cut.segments) != factor.stretches or len({*cut.segments}) != 1:
        _refuse(operation, position, str(cut), f"{factor.stretches} equal segments are expected")
    return Shard(cut.dimension, cut.segments[0].copies)


def _sliced(operation: ir.Operation, placement: str) -> str:
    """A window of columns that are cut segment by segment: some of the segments."""
    cut = parse_shard(placement)
    assert cut is not None
    start, width = attributes.int_attribute(operation, "start"), shape_of(operation.results[0])[-1] or 0
    kept: list[Segment] = []
    before = 0
    for segment in cut.segments:
        if start <= before and before + segment.size <= start + width:
            kept.append(segment)
        before += segment.size
    if sum(segment.size for segment in kept) != width:
        _refuse(operation, 0, placement, f"columns {start} to {start + width} are no whole segments")
    return str(Shard(cut.dimension, kept[0].copies) if len(kept) == 1 else Shard(cut.dimension, 1, tuple(kept)))


def _activations(operation: ir.Operation, placements: Sequence[str]) -> list[str]:
    return list(placements[:1]) if operation.name in {"ts.gather_rows", *EXCHANGES} else list(placements)


def _cut_factor(operation: ir.Operation, rule: ShardingRule, placements: Sequence[str]) -> str | None:
    for position, (factors, found) in enumerate(zip(rule.operands, placements, strict=True)):
        cut = parse_shard(found)
        if cut is None:
            continue
        factor = factors[cut.dimension]
        if factor.name in rule.whole and not (operation.name == "ts.slice" and cut.segments):
            _refuse(operation, position, found, f"factor {factor.name!r} may not be cut")
        return factor.name
    return None


def _refuse(operation: ir.Operation, operand: int, found: str, why: str) -> str:
    raise PlacementConflict(f"{operation.name}: operand {operand} is {found}: {why}")
