"""Row by row or not: what a rule says is tried out, by running the operation on some of the tokens alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tokenspeed.passes.rowwise.call import Call, MixesTokens, Operand, _schema
from tokenspeed.passes.rowwise.factories import counts_tokens
from tokenspeed.passes.rowwise.rules import RULES, result_axis
from tokenspeed.plans.aten_functions import ATEN_FUNCTIONS
from torch import Tensor

TOKENS = 5
SYMBOL = {"symbol": "tokens"}


@dataclass(frozen=True)
class X:
    """An operand: shape with None for tokens, and its kind of values."""

    shape: tuple[int | None, ...]
    kind: str = "float"
    below: int = 4

    @property
    def axis(self) -> int | None:
        return self.shape.index(None) if None in self.shape else None

    def values(self, generator: torch.Generator) -> Tensor:
        shape = [TOKENS if size is None else size for size in self.shape]
        if self.kind == "index":
            return torch.randint(0, self.below, shape, generator=generator)
        values = torch.randn(shape, generator=generator)
        return values > 0 if self.kind == "bool" else values.abs() + 0.1 if self.kind == "positive" else values


def x(*shape: int | None) -> X:
    return X(shape)


ROWS, HEADS, FLAT = x(1, None, 4), x(1, 2, None, 4), x(None, 4)

ROW_BY_ROW: tuple[tuple[str, list[Any], dict[str, Any]], ...] = (
    ("add.Tensor", [ROWS, x(4)], {"alpha": 2}),
    ("add.Tensor", [ROWS, x(1, None, 1)], {}),
    ("mul.Tensor", [HEADS, x(None, 1)], {}),
    ("sub.Tensor", [x(1), ROWS], {}),
    ("where.self", [X((1, None, 4), "bool"), ROWS, x()], {}),
    ("masked_fill.Scalar", [ROWS, X((None, 1), "bool"), 3.0], {}),
    ("pow.Tensor_Scalar", [X((1, None, 4), "positive"), 2.5], {}),
    ("clamp.default", [ROWS, -0.5, 0.5], {}),
    ("max.other", [ROWS, x(1, None, 1)], {}),
    ("softplus.default", [ROWS], {}),
    ("_to_copy.default", [ROWS], {"dtype": torch.float64}),
    ("linear.default", [ROWS, x(3, 4), x(3)], {}),
    ("linear.default", [HEADS, x(3, 4)], {}),
    ("mm.default", [FLAT, x(4, 3)], {}),
    ("addmm.default", [x(3), FLAT, x(4, 3)], {}),
    ("addmm.default", [x(None, 1), FLAT, x(4, 3)], {}),
    ("bmm.default", [x(None, 2, 4), x(None, 4, 3)], {}),
    ("baddbmm.default", [x(None, 1, 3), x(None, 2, 4), x(None, 4, 3)], {}),
    ("matmul.default", [HEADS, x(2, 4, 3)], {}),
    ("matmul.default", [x(2, 3, 4), x(1, 2, 4, None)], {}),
    ("matmul.default", [x(1, None, 2, 4), x(4, 2)], {}),
    ("sum.dim_IntList", [HEADS, [1]], {}),
    ("mean.dim", [ROWS, [-1], True], {}),
    ("amax.default", [HEADS, [1, 3]], {}),
    ("max.dim", [HEADS, 1], {}),
    ("argmax.default", [ROWS, -1], {}),
    ("var.correction", [ROWS, [2]], {"correction": 0, "keepdim": True}),
    ("linalg_vector_norm.default", [ROWS, 2, [-1], True], {}),
    ("softmax.int", [HEADS, 1], {}),
    ("cumsum.default", [ROWS, 2], {}),
    ("topk.default", [ROWS, 2], {}),
    ("sort.default", [ROWS, -1, True], {}),
    ("flip.default", [ROWS, [2]], {}),
    ("roll.default", [ROWS, [1], [2]], {}),
    ("glu.default", [ROWS], {}),
    ("layer_norm.default", [ROWS, [4], x(4), x(4)], {}),
    ("native_layer_norm.default", [FLAT, [4], x(4), x(4), 1e-5], {}),
    ("rms_norm.default", [ROWS, [4], x(4)], {}),
    ("group_norm.default", [FLAT, 2, x(4), x(4)], {}),
    ("conv1d.default", [x(None, 2, 4), x(3, 2, 2)], {}),
    ("view.default", [ROWS, [1, SYMBOL, 2, 2]], {}),
    ("view.default", [ROWS, [-1, 4]], {}),
    ("reshape.default", [x(2, 2, None, 3), [4, SYMBOL, 3]], {}),
    ("unsqueeze.default", [ROWS, 1], {}),
    ("unsqueeze.default", [ROWS, -1], {}),
    ("squeeze.default", [x(1, None, 1, 4)], {}),
    ("squeeze.dim", [ROWS, 0], {}),
    ("transpose.int", [HEADS, 1, 2], {}),
    ("permute.default", [HEADS, [2, 0, 3, 1]], {}),
    ("t.default", [FLAT], {}),
    ("expand.default", [x(1, 1, None, 4), [-1, 3, -1, -1]], {}),
    ("expand.default", [x(1, 1, 4), [1, SYMBOL, 4]], {}),
    ("repeat.default", [ROWS, [2, 1, 1, 3]], {}),
    ("repeat_interleave.self_int", [HEADS, 2, 1], {}),
    ("select.int", [HEADS, 1, 0], {}),
    ("slice.Tensor", [ROWS, 2, 1, 3], {}),
    ("slice.Tensor", [ROWS, 1, 0, 2**63 - 1], {}),
    ("split.Tensor", [ROWS, 2, 2], {}),
    ("chunk.default", [ROWS, 2, -1], {}),
    ("unbind.int", [x(2, None, 4), 0], {}),
    ("cat.default", [[ROWS, x(1, None, 2)], -1], {}),
    ("stack.default", [[ROWS, ROWS], 1], {}),
    ("stack.default", [[ROWS, ROWS], -1], {}),
    ("constant_pad_nd.default", [ROWS, [0, 2], 0.0], {}),
    ("constant_pad_nd.default", [ROWS, [1, 1, 0, 0]], {}),
    ("tril.default", [x(None, 3, 3)], {}),
    ("embedding.default", [x(4, 3), X((1, None), "index")], {}),
    ("gather.default", [ROWS, 2, X((1, None, 2), "index")], {}),
    ("scatter.src", [ROWS, 2, X((1, None, 1), "index"), x(1, None, 1)], {}),
    ("index_select.default", [x(4, 3), 0, X((None,), "index")], {}),
    ("index_select.default", [ROWS, 2, X((3,), "index")], {}),
    ("index.Tensor", [x(4, 3), [X((1, None), "index")]], {}),
    ("index.Tensor", [x(2, 4, 3), [None, X((None,), "index")]], {}),
    ("index.Tensor", [ROWS, [None, None, X((2, 3), "index")]], {}),
    ("zeros_like.default", [ROWS], {}),
    ("full.default", [[1, SYMBOL, 3], 2.0], {}),
    ("new_ones.default", [x(4), [SYMBOL]], {}),
)

MIXED: tuple[tuple[str, list[Any], str], ...] = (
    ("add.Tensor", [x(1, None, 1), x(1, 1, None)], "every token with every token"),
    ("add.Tensor", [ROWS, SYMBOL], "computes with the number of tokens"),
    ("linear.default", [x(1, 4, None), x(3, 4)], "sums over tokens"),
    ("linear.default", [x(1, 3, 4), FLAT], "takes weight from tokens"),
    ("matmul.default", [x(1, 4, None), ROWS], "sums over tokens"),
    ("matmul.default", [HEADS, x(1, 2, 4, None)], "every token with every token"),
    ("mean.dim", [ROWS, [1], True], "reduces over tokens"),
    ("mean.default", [ROWS], "reduces over tokens"),
    ("max.dim", [ROWS, 1], "reduces over tokens"),
    ("softmax.int", [ROWS, 1], "works along tokens"),
    ("cumsum.default", [ROWS, -2], "works along tokens"),
    ("topk.default", [x(1, None), 2], "works along tokens"),
    ("roll.default", [ROWS, [1], [1]], "works along tokens"),
    ("layer_norm.default", [x(None, 3), [SYMBOL, 3]], "normalises over tokens"),
    ("conv1d.default", [x(1, 4, None), x(3, 4, 1)], "mixes neighbouring tokens"),
    ("view.default", [HEADS, [-1, 4]], "splits or joins tokens"),
    ("repeat.default", [ROWS, [1, 2, 1]], "repeats tokens"),
    ("repeat_interleave.self_int", [ROWS, 2, 1], "repeats tokens"),
    ("select.int", [ROWS, 1, -1], "picks one token"),
    ("slice.Tensor", [ROWS, 1, 1, 2**63 - 1], "cuts tokens off"),
    ("slice.Tensor", [ROWS, 1, 0, 3], "cuts tokens off"),
    ("split.Tensor", [ROWS, 2, 1], "splits tokens apart"),
    ("unbind.int", [ROWS, 1], "splits tokens apart"),
    ("cat.default", [[ROWS, ROWS], 1], "behind one another"),
    ("constant_pad_nd.default", [ROWS, [0, 0, 1, 0]], "adds tokens"),
    ("tril.default", [x(1, None, 4)], "compares token numbers"),
    ("gather.default", [ROWS, 1, X((1, None, 4), "index")], "picks from other tokens"),
    ("index.Tensor", [ROWS, [None, X((1,), "index")]], "picks tokens"),
    ("index_select.default", [ROWS, 1, X((1,), "index")], "picks tokens"),
    ("full.default", [[SYMBOL, SYMBOL], 1.0], "more than one row for each token"),
    ("full.default", [[3], SYMBOL], "computes with the number of tokens"),
    ("arange.default", [SYMBOL], "computes with the number of tokens"),
    ("scaled_dot_product_attention.default", [HEADS, HEADS, HEADS], "does not go through"),
    ("nonzero.default", [FLAT], "size depends on the data"),
    ("bernoulli.default", [FLAT], "not known to work token by token"),
)


def placed(item: Any, of_operand: Any) -> Any:
    """The arguments with operands and sizes replaced."""
    if isinstance(item, X):
        return of_operand(item)
    if isinstance(item, list):
        return [placed(part, of_operand) for part in item]
    return item


def call(target: str, arguments: list[Any], keywords: dict[str, Any], result: tuple[int | None, ...]) -> Call:
    schema = _schema(f"aten.{target}")
    given = {name: json.loads(default) for name, default in schema}
    given |= dict(zip((name for name, _ in schema), arguments, strict=False)) | keywords
    operands = {name: placed(item, lambda found: Operand(found.shape, found.axis)) for name, item in given.items()}
    return Call(f"aten.{target}", operands, result)


def run(target: str, arguments: list[Any], keywords: dict[str, Any], tokens: int) -> Tensor:
    name, overload = target.split(".")
    sized = [_sized(item, tokens) for item in arguments]
    made = getattr(getattr(torch.ops.aten, name), overload)(*sized, **keywords)
    return made if isinstance(made, Tensor) else made[0]


def _sized(item: Any, tokens: int) -> Any:
    if isinstance(item, list):
        return [_sized(part, tokens) for part in item]
    return tokens if isinstance(item, dict) else item


@pytest.mark.parametrize(
    ("target", "arguments", "keywords"), ROW_BY_ROW, ids=[f"{at} {item[0]}" for at, item in enumerate(ROW_BY_ROW)]
)
def test_some_tokens_alone_give_the_same(target: str, arguments: list[Any], keywords: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(3)
    made: dict[int, Tensor] = {}

    def whole(item: X) -> Tensor:
        return made.setdefault(id(item), item.values(generator))

    picked = torch.tensor([3, 0, 4])

    def some(item: X) -> Tensor:
        return whole(item) if item.axis is None else whole(item).index_select(item.axis, picked)

    everything = run(target, placed(arguments, whole), keywords, TOKENS)
    shape = tuple(None if size == TOKENS else size for size in everything.shape)
    axis = result_axis(call(target, arguments, keywords, shape))
    assert axis is not None
    torch.testing.assert_close(
        run(target, placed(arguments, some), keywords, len(picked)), everything.index_select(axis, picked), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize(("target", "arguments", "why"), MIXED, ids=[f"{at} {item[0]}" for at, item in enumerate(MIXED)])
def test_what_mixes_tokens_is_refused_with_its_reason(target: str, arguments: list[Any], why: str) -> None:
    with pytest.raises(MixesTokens, match=why):
        result_axis(call(target, arguments, {}, (1, None, 4)))


def test_a_result_with_tokens_elsewhere_than_the_rule_says_is_refused() -> None:
    with pytest.raises(MixesTokens, match="tokens in dimensions"):
        result_axis(call("relu.default", [ROWS], {}, (1, None, None)))


def test_counting_tokens() -> None:
    assert counts_tokens(call("arange.default", [SYMBOL], {}, (None,)))
    assert counts_tokens(call("arange.start_step", [0, SYMBOL, 1], {}, (None,)))
    assert not counts_tokens(call("arange.start", [1, SYMBOL], {}, (None,)))
    assert not counts_tokens(call("arange.start_step", [0, SYMBOL, 2], {}, (None,)))
    assert not counts_tokens(call("arange.default", [8], {}, (8,)))


def test_every_function_that_a_plan_may_call_has_a_rule_and_the_other_way_round() -> None:
    assert {target.split(".")[1] for target in ATEN_FUNCTIONS.values()} == set(RULES)


def test_functions_that_a_plan_may_call_are_pure() -> None:
    for target in ATEN_FUNCTIONS.values():
        _, name, overload = target.split(".")
        operation = getattr(getattr(torch.ops.aten, name), overload)
        schema = operation._schema
        assert not any(argument.alias_info is not None and argument.alias_info.is_write for argument in schema.arguments), target
        assert torch.Tag.nondeterministic_seeded not in operation.tags, target
