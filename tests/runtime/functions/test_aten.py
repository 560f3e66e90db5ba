"""ATen functions in plans: those of the list, on rows, and nothing that a hostile plan may try."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from tokenspeed.plans.aten_functions import ATEN_FUNCTIONS, function_of
from tokenspeed.plans.errors import PlanError
from tokenspeed.plans.program import Attribute
from tokenspeed.runtime.functions.base import Operands
from tokenspeed.runtime.functions.registry import lookup
from torch import Tensor

ROWS = 3
ONE = {"operand": 0}


def call(function: str, inputs: list[Tensor], out: Tensor, layouts: str, *arguments: Any, **options: Any) -> Tensor:
    """Run a function of a plan; `options` are its keywords and `result`."""
    result = {"result": options.pop("result")} if "result" in options else {}
    attributes: dict[str, Attribute] = {
        "arguments": json.dumps({"args": list(arguments), "kwargs": options, **result}),
        "layouts": layouts,
    }
    lookup(function)(Operands(function, inputs, [out], attributes))()
    return out


def test_rows_are_put_as_they_stood_in_aten() -> None:
    x = torch.randn(ROWS, 2, 4)  # [1, 2, tokens, 4] in ATen
    made = call("aten.softmax.int", [x], torch.empty(ROWS, 2, 4), "b.t.->b.t.", ONE, 1)
    torch.testing.assert_close(made, x.softmax(1))
    made = call("aten.add.tensor", [x, torch.ones(4)], torch.empty(ROWS, 2, 4), "b.t.,-->b.t.", ONE, {"operand": 1}, alpha=2)
    torch.testing.assert_close(made, x + 2)
    made = call("aten.transpose.int", [x], torch.empty(ROWS, 4, 2), "b.t.->b.t.", ONE, 1, 3)
    torch.testing.assert_close(made, x.transpose(1, 2))


def test_the_number_of_rows_and_types_as_arguments_and_one_of_several_results() -> None:
    x = torch.randn(ROWS, 4)
    made = call("aten.full.default", [x], torch.empty(ROWS, 2), "t.->bt.", [1, {"symbol": "tokens"}, 2], float("-inf"))
    assert bool((made == -torch.inf).all())
    made = call("aten._to_copy.default", [x], torch.empty(ROWS, 4, dtype=torch.int64), "t.->t.", ONE, dtype={"dtype": "i64"})
    assert made.tolist() == x.long().tolist()
    made = call("aten.topk.default", [x], torch.empty(ROWS, 2, dtype=torch.int64), "t.->t.", ONE, 2, result=1)
    assert made.tolist() == x.topk(2).indices.tolist()
    made = call("aten.gt.scalar", [x], torch.empty(ROWS, 4, dtype=torch.bool), "t.->t.", ONE, 0.0)
    assert made.tolist() == (x > 0).tolist()


def test_views_join_dimensions_of_rows_that_lie_apart() -> None:
    x = torch.randn(ROWS, 2, 4)  # [1, 2, tokens, 4] in ATen: heads and tokens in another order than in memory
    made = call("aten.view.default", [x], torch.empty(ROWS, 2, 2, 2), "b.t.->b.t..", ONE, [1, 2, {"symbol": "tokens"}, 2, 2])
    torch.testing.assert_close(made, x.view(ROWS, 2, 2, 2))
    made = call("aten.view.default", [x], torch.empty(ROWS, 8), "bt..->bt.", ONE, [1, {"symbol": "tokens"}, 8])
    torch.testing.assert_close(made, x.view(ROWS, 8))
    flat = call("aten._unsafe_view.default", [x[:1]], torch.empty(1, 8), "t..->t.", ONE, [1, 8])
    torch.testing.assert_close(flat, x[:1].reshape(1, 8))


def test_the_output_may_be_a_window() -> None:
    x, wide = torch.randn(ROWS, 4), torch.zeros(ROWS, 10)
    call("aten.relu.default", [x], wide[:, 3:7], "bt.->bt.", ONE)
    torch.testing.assert_close(wide[:, 3:7], x.relu())
    assert not wide[:, :3].any() and not wide[:, 7:].any()


@pytest.mark.parametrize(
    "name",
    [
        "aten.add_.tensor",
        "aten.add.Tensor",
        "aten.bernoulli.default",
        "aten.relu",
        "aten.copy_.default",
        "aten.from_file.default",
        "aten.",
    ],
)
def test_what_is_not_on_the_list_cannot_be_called(name: str) -> None:
    with pytest.raises(PlanError, match="does not have"):
        lookup(name)


def test_names_in_plans_stand_for_one_operation_each() -> None:
    assert all(function_of(target) == name for name, target in ATEN_FUNCTIONS.items())
    assert function_of("aten.add_.Tensor") is None and function_of("aten.add.tensor") is None


HOSTILE: tuple[tuple[str, str, str], ...] = (
    ("aten.relu.default", "t.->t.", "not json"),
    ("aten.relu.default", "t.->t.", "[" * 60_000),
    ("aten.relu.default", "t.->t.", " " * 70_000),
    ("aten.relu.default", "t.->t.", '{"args": 3, "kwargs": {}}'),
    ("aten.relu.default", "t.->t.", '{"args": [{"operand": 0}], "kwargs": {}, "more": 1}'),
    ("aten.relu.default", "t.->t.", '{"args": [{"operand": 1}], "kwargs": {}}'),
    ("aten.relu.default", "t.->t.", '{"args": [{"operand": -1}], "kwargs": {}}'),
    ("aten.relu.default", "t.->t.", '{"args": [{"tensor": 0}], "kwargs": {}}'),
    ("aten.relu.default", "t.->t.", '{"args": [], "kwargs": {}}'),
    ("aten.relu.default", "t.->t.", '{"args": [{"operand": 0}], "kwargs": {"out": {"operand": 0}}}'),
    ("aten.relu.default", "t.->t.", '{"args": [{"operand": 0}], "kwargs": {}, "result": "0"}'),
    ("aten.relu.default", "t.->t.", '{"args": [{"operand": 0}], "kwargs": {}, "result": 5}'),
    ("aten.relu.default", "t.", '{"args": [{"operand": 0}], "kwargs": {}}'),
    ("aten.relu.default", "t.,t.->t.", '{"args": [{"operand": 0}], "kwargs": {}}'),
    ("aten.relu.default", "t..->t.", '{"args": [{"operand": 0}], "kwargs": {}}'),
    ("aten.relu.default", "tt->t.", '{"args": [{"operand": 0}], "kwargs": {}}'),
    ("aten.relu.default", "xt->t.", '{"args": [{"operand": 0}], "kwargs": {}}'),
    ("aten.gelu.default", "t.->t.", '{"args": [{"operand": 0}], "kwargs": {"approximate": "/etc/passwd"}}'),
    ("aten.full.default", "t.->t.", '{"args": [[1000000000000, 4], 0.0], "kwargs": {}}'),
    ("aten.full.default", "t.->t.", '{"args": [[{"symbol": "rows"}, 4], 0.0], "kwargs": {}}'),
    ("aten.full.default", "t.->t.", '{"args": [[3, 4], 0.0], "kwargs": {"device": "cuda"}}'),
    ("aten.full.default", "t.->t.", '{"args": [[3, 4], 0.0], "kwargs": {"dtype": {"dtype": "i64"}}}'),
    ("aten.full.default", "t.->t.", '{"args": [[3, 4], 0.0], "kwargs": {"dtype": {"dtype": "object"}}}'),
    ("aten.repeat.default", "t.->t.", '{"args": [{"operand": 0}, [100000, 100000]], "kwargs": {}}'),
    ("aten.sum.dim_intlist", "t.->t.", '{"args": [{"operand": 0}, [0]], "kwargs": {}}'),
    ("aten.expand.default", "t.->t.", '{"args": [{"operand": 0}, [[[3]], 4]], "kwargs": {}}'),
)


@pytest.mark.parametrize(("function", "layouts", "arguments"), HOSTILE)
def test_hostile_calls_are_refused_before_they_run(function: str, layouts: str, arguments: str) -> None:
    operands = Operands(function, [torch.zeros(ROWS, 4)], [torch.zeros(ROWS, 4)], {"arguments": arguments, "layouts": layouts})
    with pytest.raises(PlanError, match="in a way it cannot run"):
        lookup(function)(operands)


@pytest.mark.parametrize("attributes", [{}, {"arguments": 3, "layouts": "t.->t."}, {"arguments": "{}", "layouts": 3}])
def test_attributes_of_another_kind_are_refused(attributes: dict[str, Attribute]) -> None:
    operands = Operands("aten.relu.default", [torch.zeros(ROWS, 4)], [torch.zeros(ROWS, 4)], attributes)
    with pytest.raises(PlanError, match="in a way it cannot run"):
        lookup("aten.relu.default")(operands)
