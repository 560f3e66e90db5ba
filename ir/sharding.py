"""One sharding rule per operation, einsum-like, read alike by propagation and by the SPMD verifier.

A rule names each dimension of each operand and result by a factor. A mesh axis may cut one factor: every operand that has
the factor is sharded there, every other operand is replicated. If the result has the factor it is sharded too; if not,
the factor was summed over and the result is partial. Factors after `|` may not be cut. `...` stands for middle dimensions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .mlir import ir
from .types import shape_of

REPLICATE, PARTIAL = "replicate", "partial"

_RULES = {
    "ts.embedding": "r, v h -> r h",
    "ts.linear": "r k, n k, n -> r n",
    "ts.rms_norm": "r ... h, h -> r ... h | h",
    "ts.add_rms_norm": "r h, r h, h -> r h, r h | h",
    "ts.layer_norm": "r ... h, h, h -> r ... h | h",
    "ts.rope_table": "r, f -> r d, r d | f",
    "ts.rope": "r h d, r e, r e -> r h d | d e",
    "ts.attention": "r h d, r h d, r h e, h -> r h e | r d e",
    "ts.rope_kv_write": "r h d, r h d, r h d, r e, r e -> r h d | r d e",
    "ts.cached_attention": "r h d, h -> r h d | r d",
    "ts.gated_activation": "r n, r n -> r n",
    "ts.activation": "r ... -> r ...",
    "ts.scale": "r ... -> r ...",
    "ts.softcap": "r ... -> r ...",
    # the rows of kv_b are its heads' keys and values, head after head
    "ts.latent_attention": "r h n, r h d, r c, r d, h c -> r h v | r n d c v",
    "ts.moe_route": "r e, e -> r k, r k | e k",
    # experts may be shared out over ranks, each adding its own experts' part; gate and up lie behind each other in one dimension,
    # so cutting that is not a placement
    "ts.moe_experts": "r h, r k, r k, e n h, e h i, e n, e h -> r h | h k n i",
    "ts.cast": "r ... -> r ...",
    "ts.add": "r ..., r ... -> r ...",
    "ts.mul": "r ..., r ... -> r ...",
    "ts.slice": "r ... n -> r ... m | n m",
    "ts.gather_rows": "r ..., l -> l ... | r l",
    "ts.all_reduce": "r ... -> r ...",
}

SUM_COMMUTES = {"ts.add", "ts.scale", "ts.reshape", "ts.slice", "ts.gather_rows"}
"""Operations that may be applied to a partial sum before it is reduced (all their activations being partial)."""


class PlacementConflict(ValueError):
    """Operand placements that the operation's rule does not allow; says which operand and why."""


@dataclass(frozen=True)
class ShardingRule:
    operands: tuple[tuple[str, ...], ...]
    results: tuple[tuple[str, ...], ...]
    whole: frozenset[str]


def rule_of(operation: ir.Operation) -> ShardingRule:
    """The operation's rule at the ranks it has."""
    if operation.name in {"ts.aten", "ts.recurrence"} or (operation.name == "ts.reshape" and max(_ranks(operation)) > 3):
        # nothing is known of where its dimensions go, so none may be cut
        names = [tuple(f"{value}.{at}" for at in range(rank)) for value, rank in enumerate(_ranks(operation))]
        return ShardingRule(tuple(names[:-1]), (names[-1],), frozenset(name for part in names for name in part))
    if operation.name == "ts.reshape":
        # the leading head dimension of [rows, heads, d] is the slow part of [rows, heads * d]
        names = [("r", "h", "d")[: len(shape_of(value))] for value in (operation.operands[0], operation.results[0])]
        return ShardingRule((names[0],), (names[1],), frozenset({"d"}))
    text, _, whole = _RULES[operation.name].partition("|")
    left, right = text.split("->")
    operands = [_factors(part, len(shape_of(value))) for part, value in zip(left.split(","), operation.operands, strict=False)]
    results = [_factors(part, len(shape_of(value))) for part, value in zip(right.split(","), operation.results, strict=True)]
    return ShardingRule(tuple(operands), tuple(results), frozenset(whole.split()))


def _ranks(operation: ir.Operation) -> list[int]:
    return [len(shape_of(value)) for value in (*operation.operands, *operation.results)]


def _factors(text: str, rank: int) -> tuple[str, ...]:
    names = text.split()
    if "..." in names:
        at = names.index("...")
        middle = [f"m{number}" for number in range(rank - len(names) + 1)]
        names = names[:at] + middle + names[at + 1 :]
    return tuple(names)


def shard(dimension: int) -> str:
    return f"shard({dimension})"


def sharded_dimension(placement: str) -> int | None:
    found = re.fullmatch(r"shard\((\d+)\)", placement)
    return int(found[1]) if found else None


def results_on_axis(operation: ir.Operation, placements: Sequence[str]) -> list[str]:
    """Placements of the results along one mesh axis, given those of the operands.

    Raises PlacementConflict when the rule does not allow the operands.
    """
    rule = rule_of(operation)
    for position, (names, found) in enumerate(zip(rule.operands, placements, strict=True)):
        if found not in {REPLICATE, PARTIAL} and sharded_dimension(found) not in range(len(names)):
            _refuse(operation, position, found, f"no placement of an operand of rank {len(names)}")
    if operation.name == "ts.all_reduce":
        return [REPLICATE if placements[0] == PARTIAL else _refuse(operation, 0, placements[0], "all_reduce needs a partial sum")]
    if PARTIAL in placements:
        if operation.name in SUM_COMMUTES and all(found == PARTIAL for found in _activations(operation, placements)):
            return [PARTIAL] * len(rule.results)
        return [_refuse(operation, list(placements).index(PARTIAL), PARTIAL, "a partial sum must be reduced first")]
    cut = _cut_factor(operation, rule, placements)
    if cut is None:
        return [REPLICATE] * len(rule.results)
    for position, (names, found) in enumerate(zip(rule.operands, placements, strict=True)):
        expected = shard(names.index(cut)) if cut in names else REPLICATE
        if found != expected:
            _refuse(operation, position, found, f"factor {cut!r} is cut, so {expected} is expected")
    if operation.name == "ts.linear" and cut not in rule.results[0] and len(placements) > 2:
        _refuse(operation, 2, placements[2], f"factor {cut!r} is summed over ranks, so the bias would be added once by each")
    return [shard(names.index(cut)) if cut in names else PARTIAL for names in rule.results]


def _activations(operation: ir.Operation, placements: Sequence[str]) -> list[str]:
    return list(placements[:1]) if operation.name == "ts.gather_rows" else list(placements)


def _cut_factor(operation: ir.Operation, rule: ShardingRule, placements: Sequence[str]) -> str | None:
    for position, (names, found) in enumerate(zip(rule.operands, placements, strict=True)):
        dimension = sharded_dimension(found)
        if dimension is None:
            continue
        if names[dimension] in rule.whole:
            _refuse(operation, position, found, f"factor {names[dimension]!r} may not be cut")
        return names[dimension]
    return None


def _refuse(operation: ir.Operation, operand: int, found: str, why: str) -> str:
    raise PlacementConflict(f"{operation.name}: operand {operand} is {found}: {why}")
