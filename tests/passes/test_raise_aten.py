"""Raising as a whole: the head on the logit rows, repeats, and the error that names what no rule takes."""

from __future__ import annotations

import pytest
from tokenspeed.ir import module
from tokenspeed.ir.mlir import ir
from tokenspeed.ir.types import shape_of
from tokenspeed.plans.errors import ModelError

from .raising.graph import TOKENS, Graph, only, operations

ROWS: list[int | None] = [1, None, 16]


def test_the_head_runs_on_the_logit_rows_only() -> None:
    graph = Graph()
    logits = graph.call("linear.default", graph.hidden(), graph.weight("head", [50, 16]), shape=[1, None, 50], label="lm_head")
    raised = graph.raised(logits)
    gathered, head = only(raised, "gather_rows"), only(raised, "linear")
    assert head.operands[0] == gathered.results[0] and module.label_of(head) == "lm_head"
    assert [module.text_attribute(item, "sym") for item in operations(raised, "input")] == ["token_ids", "logit_rows"]
    assert "-> tensor<?x50xf32>" in str(raised)


def test_logits_that_are_no_linear_are_gathered_at_the_end() -> None:
    graph = Graph()
    x = graph.hidden()
    raised = graph.raised(graph.call("mul.Tensor", x, x, shape=ROWS))
    assert only(raised, "gather_rows").operands[0] == only(raised, "mul").results[0]


def test_step_inputs_lose_their_batch_dimension() -> None:
    graph = Graph()
    raised = graph.raised(graph.hidden())
    assert {shape_of(item.results[0]) for item in operations(raised, "input")} == {(None,)}
    assert "i64>" not in str(raised)


def test_equal_operations_become_one_and_unused_ones_go() -> None:
    graph = Graph()
    x = graph.hidden()
    weight = graph.weight("w", [16, 16])
    first, second = (graph.call("linear.default", x, weight, shape=ROWS) for _ in range(2))
    graph.call("linear.default", x, graph.weight("unused", [16, 16]), shape=ROWS)
    raised = graph.raised(graph.call("mul.Tensor", first, second, shape=ROWS))
    assert len(operations(raised, "linear")) == 1 and "unused" not in str(raised)


def test_the_first_operation_that_mixes_tokens_is_named() -> None:
    graph = Graph()
    x = graph.call("linear.default", graph.hidden(), graph.weight("a", [16, 16]), shape=ROWS, label="fine")
    odd = graph.call("cumsum.default", x, 1, shape=ROWS, label="layers.{i}.odd_one")
    after = graph.call("linear.default", odd, graph.weight("b", [16, 16]), shape=ROWS, label="after")
    with pytest.raises(ModelError) as refused:
        graph.raised(graph.call("add.Tensor", x, after, shape=ROWS, label="later"))
    error = refused.value
    assert (error.got, error.where) == ("aten.cumsum.default works along tokens", "layers.{i}.odd_one")
    assert "'sample'" in error.what and error.expected and error.fix


def test_what_mixes_tokens_does_not_matter_where_it_is_not_used() -> None:
    graph = Graph()
    x = graph.hidden()
    graph.call("cumsum.default", x, 1, shape=ROWS)
    assert not operations(graph.raised(graph.call("linear.default", x, graph.weight("a", [16, 16]), shape=ROWS)), "aten")


def test_a_value_without_tokens_cannot_be_the_result() -> None:
    graph = Graph()
    with pytest.raises(ModelError, match="does not depend on tokens"):
        graph.raised(graph.call("relu.default", graph.weight("a", [16, 16]), shape=[16, 16]))


def test_layouts_and_casts_of_what_is_left() -> None:
    """Positions are i64 in ATen and i32 in a step; a table by token; a norm of each head."""
    graph = Graph()
    numbers = graph.call("add.Tensor", graph.input("positions"), 2, shape=[1, None], dtype="i64")
    table = graph.call("index_select.default", graph.weight("positions", [50, 16]), 0, flat(graph, numbers), shape=[None, 16])
    raised = graph.raised(graph.call("softmax.int", table, -1, shape=[None, 16]))
    found = [
        (module.text_attribute(item, "target"), module.text_attribute(item, "layouts")) for item in operations(raised, "aten")
    ]
    assert found == [
        ("aten._to_copy.default", "bt->bt"),
        ("aten.add.Tensor", "bt->bt"),
        ("aten.index_select.default", "-,t->t."),
        ("aten.softmax.int", "t.->t."),
    ]


def flat(graph: Graph, numbers: ir.Value) -> ir.Value:
    return graph.call("view.default", numbers, [-1], shape=[None], dtype="i64")


def test_the_number_of_a_token_is_its_position() -> None:
    graph = Graph()
    counted = graph.call("arange.default", TOKENS, shape=[None], dtype="i64")
    raised = graph.raised(graph.call("embedding.default", graph.weight("a", [16, 8]), counted, shape=[None, 8]))
    cast = operations(raised, "aten")[0]
    assert module.text_attribute(cast, "target") == "aten._to_copy.default"
    assert 'sym = "positions"' in str(cast.operands[0].owner)
