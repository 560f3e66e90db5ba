"""Sharding rules: what each operation makes of its operands' placements, and which operands it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from tokenspeed.ir import module
from tokenspeed.ir.mlir import ir
from tokenspeed.ir.sharding import CHANGES, PlacementConflict, results_on_axis, rule_of

from .modules import Sample
from .samples import SOUND

R, P = "replicate", "partial"
S0, S1, S2 = "shard(0)", "shard(1)", "shard(2)"

LEGAL: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("ts.embedding", (R, S1), (S1,)),
    ("ts.embedding", (S0, R), (S0,)),
    ("ts.linear", (R, S0), (S1,)),
    ("ts.linear", (S1, S1), (P,)),
    ("ts.linear", (S0, R), (S0,)),
    ("ts.linear", (R, S0, S0), (S1,)),
    ("ts.linear", (S0, R, R), (S0,)),
    ("ts.rms_norm", (S0, R), (S0,)),
    ("ts.add_rms_norm", (S0, S0, R), (S0, S0)),
    ("ts.layer_norm", (S0, R, R), (S0,)),
    ("ts.rope_table", (S0, R), (S0, S0)),
    ("ts.rope", (S1, R, R), (S1,)),
    ("ts.rope", (S0, S0, S0), (S0,)),
    ("ts.attention", (S1, S1, S1), (S1,)),
    ("ts.attention", (S1, S1, S1, S0), (S1,)),
    ("ts.rope_kv_write", (S1, S1, S1, R, R), (S1,)),
    ("ts.cached_attention", (S1,), (S1,)),
    ("ts.cached_attention", (S1, S0), (S1,)),
    ("ts.gated_activation", (S1, S1), (S1,)),
    ("ts.activation", (S1,), (S1,)),
    ("ts.scale", (S1,), (S1,)),
    ("ts.scale", (P,), (P,)),
    ("ts.softcap", (S1,), (S1,)),
    ("ts.add", (S1, S1), (S1,)),
    ("ts.add", (P, P), (P,)),
    ("ts.mul", (S1, S1), (S1,)),
    ("ts.reshape", (S1,), (S1,)),
    ("ts.reshape", (P,), (P,)),
    ("ts.slice", (S0,), (S0,)),
    ("ts.slice", (P,), (P,)),
    ("ts.gather_rows", (S1, R), (S1,)),
    ("ts.gather_rows", (P, R), (P,)),
    # key/value heads in copies; columns cut segment by segment, and windows of them
    ("ts.linear", (R, "shard(0, copies=2)"), ("shard(1, copies=2)",)),
    ("ts.linear", (R, "shard(0, segments=2+4*2)", "shard(0, segments=2+4*2)"), ("shard(1, segments=2+4*2)",)),
    ("ts.attention", (S1, "shard(1, copies=2)", "shard(1, copies=2)"), (S1,)),
    ("ts.rope_kv_write", (S1, "shard(1, copies=2)", "shard(1, copies=2)", R, R), (S1,)),
    ("ts.slice", ("shard(1, segments=5+3*2)",), ("shard(1, copies=2)",)),
    ("ts.slice", ("shard(1, segments=5+2+1)",), ("shard(1, segments=2+1)",)),
    # a bias is a part of the sum like the rest
    ("ts.linear", (S1, S1, P), (P,)),
    ("ts.moe_experts", (R, R, R, "shard(1, segments=5+5)", S2), (P,)),
    ("ts.moe_experts", (R, R, R, "shard(1, segments=5+5)", S2, "shard(1, segments=5+5)", P), (P,)),
    # with numbers, whole experts
    ("ts.moe_experts", (R, R, R, S0, S0, S0), (P,)),
    ("ts.moe_experts", (R, R, R, "shard(1, segments=5+5)", S2, R), (P,)),
    ("ts.all_gather", (S1,), (R,)),
    ("ts.all_reduce", (P,), (R,)),
    ("ts.dispatch", (S0, R), ("dispatched",)),
    ("ts.moe_experts", ("dispatched", R, R, S0, S0, S0), (P,)),
    ("ts.combine", (P, R), (S0,)),
    ("ts.reduce_scatter", (P,), (S0,)),
    ("ts.take_part", (R,), (S0,)),
    # each rank has rows of its own
    ("ts.embedding", (S0, R), (S0,)),
    ("ts.linear", (S0, R, R), (S0,)),
    ("ts.add_rms_norm", (S0, S0, R), (S0, S0)),
    ("ts.moe_route", (S0,), (S0, S0)),
)

ILLEGAL: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("ts.embedding", (S0, S1), "operand 1"),
    ("ts.embedding", (R, S0), "factor 'v' may not be cut"),
    ("ts.linear", (S1, R), "operand 1 is replicate: factor 'k' is cut"),
    ("ts.linear", (R, S1), "operand 0"),
    ("ts.linear", (P, R), "a partial sum must be reduced first"),
    ("ts.linear", (R, S0, R), "operand 2 is replicate"),
    ("ts.linear", (S1, S1, R), "what is added would be added once by each"),
    ("ts.linear", ("shard(1, copies=2)", "shard(1, copies=2)"), "of which some have the same part"),
    ("ts.linear", ("shard(1, segments=4+4)", S1), "cut otherwise"),
    ("ts.reshape", ("shard(1, segments=16+16)",), "has no other shape"),
    ("ts.slice", ("shard(1, segments=4+4)",), "are no whole segments"),
    ("ts.moe_experts", (R, R, R, "shard(1)", S2), "2 equal segments"),
    ("ts.moe_experts", (R, R, R, "shard(1, segments=4+6)", S2), "2 equal segments"),
    ("ts.moe_experts", (R, R, R, S0, S0), "factor 'e' may not be cut"),
    ("ts.moe_experts", (R, R, R, S0, S0, R), "operand 5 is replicate: factor 'e' is cut"),
    ("ts.moe_experts", (R, R, R, R, R, S0), "operand 3 is replicate: factor 'e' is cut"),
    ("ts.moe_experts", (R, R, R, "shard(0, copies=2)", "shard(0, copies=2)", "shard(0, copies=2)"), "some have the same part"),
    ("ts.moe_experts", (R, R, R, "shard(1, segments=5+5)", S2, "shard(1, segments=5+5)", R), "added once by each"),
    ("ts.all_gather", (R,), "all_gather here needs shard"),
    ("ts.dispatch", (R, R), "dispatch here needs shard"),
    ("ts.dispatch", (S0, S0), "every rank has to know"),
    ("ts.combine", (R, R), "combine here needs a partial sum"),
    ("ts.moe_experts", ("dispatched", R, R, "shard(1, segments=5+5)", S2, R), "rows were sent to their experts"),
    ("ts.add", ("dispatched", "dispatched"), "no placement"),
    ("ts.all_gather", ("shard(1, copies=2)",), "all_gather here needs shard"),
    ("ts.rms_norm", (S1, S0), "factor 'h' may not be cut"),
    ("ts.rms_norm", (P, R), "reduced first"),
    ("ts.add_rms_norm", (P, R, R), "reduced first"),
    ("ts.add_rms_norm", (R, S0, R), "operand 0"),
    ("ts.layer_norm", (S1, R), "factor 'h' may not be cut"),
    ("ts.layer_norm", (P, R), "reduced first"),
    ("ts.rope_table", (R, S0), "factor 'f' may not be cut"),
    ("ts.rope", (S2, R, R), "factor 'd' may not be cut"),
    ("ts.rope", (R, S1, S1), "factor 'e' may not be cut"),
    ("ts.attention", (S1, R, R), "operand 1"),
    ("ts.attention", (S0, S0, S0), "factor 'r' may not be cut"),
    ("ts.rope_kv_write", (R, S1, S1, R, R), "operand 0"),
    ("ts.attention", (S1, S1, S1, R), "operand 3 is replicate"),
    ("ts.cached_attention", (S2,), "factor 'd' may not be cut"),
    ("ts.cached_attention", (R, S0), "operand 0"),
    ("ts.gated_activation", (S1, R), "operand 1"),
    ("ts.gated_activation", (P, P), "reduced first"),
    ("ts.activation", (P,), "reduced first"),
    ("ts.softcap", (P,), "reduced first"),
    ("ts.add", (P, R), "reduced first"),
    ("ts.add", (S0, S1), "operand 1"),
    ("ts.mul", (P, P), "reduced first"),
    ("ts.slice", (S1,), "factor 'n' may not be cut"),
    ("ts.gather_rows", (S0, R), "factor 'r' may not be cut"),
    ("ts.gather_rows", (R, S0), "factor 'l' may not be cut"),
    ("ts.all_reduce", (R,), "needs a partial sum"),
    ("ts.reduce_scatter", (R,), "reduce_scatter here needs a partial sum"),
    ("ts.take_part", (P,), "take_part here needs replicate"),
    ("ts.add", (S0, R), "operand 1 is replicate"),
    ("ts.add", ("shard(2)", "shard(2)"), "no placement of an operand of rank 2"),
    ("ts.add", ("banana", R), "no placement"),
    ("ts.add", ("shard(-1)", R), "no placement"),
    ("ts.add", ("shard(x)", R), "no placement"),
)


@pytest.fixture(autouse=True)
def in_context() -> Iterator[None]:
    with module.context():
        yield


def operation(name: str, operands: int) -> ir.Operation:
    sample = next(item for item in SOUND if item.name == name and len(item.operands) == operands)
    return built(sample)


def built(sample: Sample) -> ir.Operation:
    parsed = module.parse(sample.module())
    found = next(item for item in module.walk(module.step_block(parsed)) if item.name == sample.name)
    _alive.append(parsed)
    return found


_alive: list[ir.Module] = []


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    _alive.clear()


@pytest.mark.parametrize(("name", "operands", "results"), LEGAL)
def test_legal_placements(name: str, operands: tuple[str, ...], results: tuple[str, ...]) -> None:
    assert tuple(results_on_axis(operation(name, len(operands)), operands, "tp")) == results


@pytest.mark.parametrize(("name", "operands", "message"), ILLEGAL)
def test_illegal_placements(name: str, operands: tuple[str, ...], message: str) -> None:
    with pytest.raises(PlacementConflict, match=message):
        results_on_axis(operation(name, len(operands)), operands, "tp")


def test_collectives_of_another_axis() -> None:
    """Parts of parts are gathered inside out."""
    gather, reduce = operation("ts.all_gather", 1), operation("ts.all_reduce", 1)  # along tp
    assert results_on_axis(gather, [S1], "ep") == [S1] and results_on_axis(gather, [S0], "ep") == [S0]
    assert results_on_axis(gather, [P], "ep") == results_on_axis(reduce, [P], "ep") == [P]
    gather.attributes["axis"] = module.text("ep")
    with pytest.raises(PlacementConflict, match="may not be cut"):
        results_on_axis(gather, [S1], "tp")


@pytest.mark.parametrize(
    "sample",
    [s for s in SOUND if s.operands and s.results and s.name not in {"ts.aten", *CHANGES}],
    ids=lambda s: s.name,
)
def test_replicated_operands_give_replicated_results(sample: Sample) -> None:
    found = results_on_axis(built(sample), [R] * len(sample.operands), "tp")
    assert found == [R] * len(sample.results)


@pytest.mark.parametrize(
    "sample", [s for s in SOUND if s.operands and s.results and s.name != "ts.aten"], ids=lambda s: f"{s.name}-{len(s.operands)}"
)
def test_rules_fit_the_ranks_of_their_operation(sample: Sample) -> None:
    item = built(sample)
    rule = rule_of(item)
    for names, values in ((rule.operands, item.operands), (rule.results, item.results)):
        assert [len(factors) for factors in names] == [ir.RankedTensorType(value.type).rank for value in values]
    known = {factor.name for factors in (*rule.operands, *rule.results) for factor in factors}
    assert rule.whole <= known


OWN_ROWS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("ts.linear", ("own", R), ("own",)),
    ("ts.linear", ("own", R, R), ("own",)),
    ("ts.embedding", ("own", R), ("own",)),
    ("ts.attention", ("own", "own", "own"), ("own",)),
    ("ts.rope_kv_write", ("own",) * 5, ("own",)),
    ("ts.gather_rows", ("own", "own"), ("own",)),
    ("ts.moe_route", ("own",), ("own", "own")),
    ("ts.moe_experts", (R, R, R, S0, S0, S0), (P,)),
    # rows of all ranks behind each other, where an operation knows of none but its operands
    ("ts.linear", (R, S0), (S1,)),
    ("ts.linear", (S1, S1), (P,)),
)

NOT_OWN: tuple[tuple[str, tuple[str, ...], str, str], ...] = (
    ("ts.linear", ("own", R), "tp", "no rank has rows of its own"),
    ("ts.linear", ("own", S0), "dp", "operand 1 is shard"),
    ("ts.add", ("own", R), "dp", "operand 1 is replicate"),
    ("ts.add", (P, "own"), "dp", "operand 0 is partial"),
    ("ts.attention", (R, R, R), "dp", "operand 0 is replicate"),
    ("ts.attention", (S1, S1, S1), "dp", "operand 0 is shard"),
    ("ts.gather_rows", (R, R), "dp", "operand 0 is replicate"),
    ("ts.aten", (R,), "dp", "operand 0 is replicate"),
)


@pytest.mark.parametrize(("name", "operands", "results"), OWN_ROWS)
def test_rows_of_ranks_own(name: str, operands: tuple[str, ...], results: tuple[str, ...]) -> None:
    assert tuple(results_on_axis(operation(name, len(operands)), operands, "dp")) == results


@pytest.mark.parametrize(("name", "operands", "axis", "message"), NOT_OWN)
def test_rows_that_are_not_ranks_own(name: str, operands: tuple[str, ...], axis: str, message: str) -> None:
    with pytest.raises(PlacementConflict, match=message):
        results_on_axis(operation(name, len(operands)), operands, axis)


@pytest.mark.parametrize("name", ["ts.all_gather", "ts.reduce_scatter", "ts.take_part"])
def test_outer_axes_cut_rows_first(name: str) -> None:
    inner = built(next(item for item in SOUND if item.name == name and "dimension = 0" in item.attributes))
    assert results_on_axis(inner, [S0], "ep") == [S0]
    inner.attributes["axis"] = module.text("ep")
    with pytest.raises(PlacementConflict, match="may not be cut"):
        results_on_axis(inner, [S0], "tp")


@pytest.mark.parametrize(
    ("name", "before", "after"), [("ts.all_gather", "own", R), ("ts.reduce_scatter", P, "own"), ("ts.take_part", R, "own")]
)
def test_rows_of_groups_are_joined_and_parted(name: str, before: str, after: str) -> None:
    sample = next(item for item in SOUND if item.name == name and "dimension = 0" in item.attributes)
    changed = built(replace(sample, attributes=sample.attributes.replace('"tp"', '"dp"')))
    assert results_on_axis(changed, (before,), "dp") == [after]
    assert results_on_axis(changed, (R,), "tp") == [R]
    with pytest.raises(PlacementConflict):
        results_on_axis(changed, (S0,), "dp")
