"""Unification: what patterns match, bind and refuse."""

from __future__ import annotations

from tokenspeed.ir.mlir import ir
from tokenspeed.passes.raising.pattern import AtenOp, Bind, Cast, Number, defining, either, match, op

from .graph import Graph

ROWS: list[int | None] = [1, None, 16]


def pair() -> tuple[Graph, ir.Value, ir.Value]:
    graph = Graph()
    return graph, graph.hidden(), graph.call("silu.default", graph.hidden(), shape=ROWS)


def test_an_operation_is_matched_by_target_arguments_and_keywords() -> None:
    graph, a, _ = pair()
    gelu = graph.call("gelu.default", a, shape=ROWS, approximate="tanh")
    assert match(op("gelu", Bind("x"), approximate="tanh"), gelu) == {"x": a}
    assert match(op("gelu", Bind("x")), gelu) is None, "keywords must be the same"
    assert match(op("gelu", Bind("x"), approximate="none"), gelu) is None
    assert match(op("relu", Bind("x"), approximate="tanh"), gelu) is None
    assert match(op("gelu", Bind("x"), Bind("y"), approximate="tanh"), gelu) is None, "so must the number of arguments"


def test_mul_and_add_are_tried_in_both_orders_and_sub_is_not() -> None:
    graph, a, b = pair()
    pattern = (op("silu", Bind("x")), Bind("y"))
    for target in ("mul", "add"):
        for left, right in ((a, b), (b, a)):
            value = graph.call(f"{target}.Tensor", left, right, shape=ROWS)
            bound = match(op(target, *pattern), value)
            assert bound is not None and bound["y"] == a
    assert match(op("sub", *pattern), graph.call("sub.Tensor", b, a, shape=ROWS)) is not None
    assert match(op("sub", *pattern), graph.call("sub.Tensor", a, b, shape=ROWS)) is None


def test_commuted_operands_inside_commuted_operands() -> None:
    graph, a, b = pair()
    inner = graph.call("add.Tensor", b, a, shape=ROWS)
    outer = graph.call("mul.Tensor", b, inner, shape=ROWS)
    assert match(op("mul", op("add", Bind("x"), Bind("y")), Bind("y")), outer) == {"x": a, "y": b}


def test_a_name_met_twice_is_one_value() -> None:
    graph, a, b = pair()
    square, product = (graph.call("mul.Tensor", a, other, shape=ROWS) for other in (a, b))
    assert match(op("mul", Bind("x"), Bind("x")), square) == {"x": a}
    assert match(op("mul", Bind("x"), Bind("x")), product) is None


def test_numbers_bind_numbers_only() -> None:
    graph, a, b = pair()
    scaled = graph.call("mul.Tensor", a, 0.5, shape=ROWS)
    assert match(op("mul", Bind("x"), Number("by")), scaled) == {"x": a, "by": 0.5}
    assert match(op("mul", Bind("x"), Number("by")), graph.call("mul.Tensor", a, b, shape=ROWS)) is None
    flagged = graph.call("mean.dim", a, [-1], True, shape=[1, None, 1])
    assert match(op("mean", Bind("x"), [-1], True), flagged) == {"x": a}
    assert match(op("mean", Bind("x"), [-1], 1), flagged) is None, "1 is not true"
    assert match(op("mean", Bind("x"), [-1], Number("n")), flagged) is None
    assert match(op("mean", Bind("x"), [-2], True), flagged) is None
    assert match(op("mean", Bind("x"), [-1, 0], True), flagged) is None


def test_casts_are_looked_through_and_remembered() -> None:
    graph = Graph("bf16")
    a = graph.hidden()
    up = graph.cast(a, ROWS, "f32")
    for value, dtype in ((up, "f32"), (a, None)):
        assert match(Cast(Bind("x"), "to"), value) == ({"x": a, "to": dtype} if value is up else {"x": a, "to": None})
    silu = graph.call("silu.default", up, shape=ROWS, dtype="f32")
    assert match(op("silu", Cast(op("embedding", Bind("t"), Bind("i")))), silu) is not None
    assert match(op("silu", op("embedding", Bind("t"), Bind("i"))), silu) is None


def test_either_takes_the_first_that_fits() -> None:
    graph, a, _ = pair()
    scaled = graph.call("mul.Tensor", a, 2.0, shape=ROWS)
    pattern = either(op("mul", Bind("x"), Number("by")), Bind("x"))
    assert match(pattern, scaled) == {"x": a, "by": 2.0}
    assert match(pattern, a) == {"x": a}


def test_what_defines_a_value() -> None:
    graph, a, b = pair()
    found = defining(b)
    assert isinstance(found, AtenOp) and found.target == "aten.silu.default" and found.result == b
    assert defining(graph.weight("w", [2])) is None
    assert defining(a) is not None
    block = ir.Block.create_at_start(ir.Module.create().operation.regions[0], [a.type])
    assert defining(block.arguments[0]) is None


def test_nested_lists_are_placed() -> None:
    graph, a, b = pair()
    joined = graph.call("cat.default", [a, b], -1, shape=[1, None, 32])
    found = defining(joined)
    assert found is not None and found.arguments == [[a, b], -1]
    assert match(op("cat", [Bind("x"), Bind("y")], -1), joined) == {"x": a, "y": b}
    assert match(op("cat", [Bind("x")], -1), joined) is None
