"""take_last_tokens, embedding, gather_rows, elementwise functions, the gated activation, linear layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenspeed.plans.errors import PlanError
from tokenspeed.runtime.functions.registry import lookup

from .calling import bind, call, error, poisoned, random

i32 = torch.int32


def test_an_unknown_function_is_refused() -> None:
    with pytest.raises(PlanError, match=r"os\.system"):
        lookup("os.system")


def test_tokens_not_known_yet_come_from_the_slot() -> None:
    tokens = torch.full((5,), 99, dtype=i32)
    ids = torch.tensor([7, -1, 0, -1, 3], dtype=i32)
    slots = torch.tensor([0, 2, 1, -1, -1], dtype=i32)
    call("take_last_tokens", [ids, slots, torch.tensor([10, 11, 12], dtype=i32)], [tokens])
    assert tokens.tolist() == [7, 12, 0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_embedding_and_gather_pick_rows(dtype: torch.dtype, rows: int) -> None:
    table, picked = random(11, 6, dtype=dtype), torch.tensor([3, 10, 0, 3, 1], dtype=i32)[:rows]
    for name, inputs in (("embedding", [picked, table]), ("gather_rows", [table, picked])):
        out = poisoned(rows, 6, dtype=dtype)
        call(name, inputs, [out])
        assert torch.equal(out, table[picked.long()])


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(0, 9), columns=st.integers(1, 5000), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_elementwise_functions_take_windows(rows: int, columns: int, dtype: torch.dtype) -> None:
    merged = random(rows, 2 * columns, dtype=dtype)
    a, b = merged[:, :columns], merged[:, columns:]
    cases = (
        ("add", [a, b], {}, a + b),
        ("mul", [a, b], {}, a * b),
        ("scale", [a], {"factor": 0.37}, a * 0.37),
        ("copy", [b], {}, b),
        ("softcap", [a], {"cap": 2.5}, (torch.tanh(a.double() / 2.5) * 2.5)),
    )
    for name, inputs, attributes, expected in cases:
        around = poisoned(rows, columns + 2, dtype=dtype)
        call(name, inputs, [around[:, 1:-1]], **attributes)
        tolerance = 1e-6 if dtype == torch.float32 else 0.03
        assert error(around[:, 1:-1], expected) <= tolerance, name
        assert around[:, [0, -1]].isnan().all()


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(0, 40), columns=st.integers(1, 700), kind=st.sampled_from(["silu", "gelu", "gelu_tanh", "relu", "relu2"]))
def test_activations(rows: int, columns: int, kind: str) -> None:
    merged, out = 3 * random(rows, 2 * columns), poisoned(rows, columns)
    gate, up = merged[:, :columns], merged[:, columns:]
    wide = gate.double()
    expected = {
        "silu": torch.nn.functional.silu(wide),
        "gelu": torch.nn.functional.gelu(wide),
        "gelu_tanh": torch.nn.functional.gelu(wide, approximate="tanh"),
        "relu": wide.relu(),
        "relu2": wide.relu().square(),
    }[kind]
    call("gated_activation", [gate, up], [out], activation=kind)
    gated = expected * up.double()
    assert error(out, gated) <= 1e-6 * (1 + float(gated.abs().max()) if rows else 1)
    call("activation", [gate], [out], kind=kind)
    assert error(out, expected) <= 1e-6 * (1 + float(expected.abs().max()) if rows else 1)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(0, 20), inner=st.integers(1, 80), outer=st.integers(1, 80), with_bias=st.booleans())
def test_linear_layers(rows: int, inner: int, outer: int, with_bias: bool) -> None:
    x, weight, bias = random(rows, inner), random(outer, inner, seed=1), random(outer, seed=2)
    expected = torch.nn.functional.linear(x.double(), weight.double(), bias.double() if with_bias else None)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 64)
    for name, operand in (("linear", weight), ("linear_onednn", packed)):
        around = poisoned(rows, outer + 1)
        call(name, [x, operand] + [bias] * with_bias, [around[:, :-1]])
        assert error(around[:, :-1], expected) < 1e-4, name
        assert around[:, -1].isnan().all()


def test_functions_write_the_same_again_after_their_inputs_changed() -> None:
    x, weight, out = random(3, 8), random(4, 8, seed=1), poisoned(3, 4)
    launch = bind("linear", [x, weight], [out])
    launch()
    x.mul_(2)
    launch()
    assert error(out, x @ weight.t()) < 1e-5


@pytest.mark.parametrize(
    ("name", "inputs", "outputs", "attributes"),
    [
        ("add", [(2, 3), (2, 4)], [(2, 3)], {}),
        ("add", [(2, 3)], [(2, 3)], {}),
        ("scale", [(2, 3)], [(2, 3)], {}),
        ("scale", [(2, 3)], [(2, 3)], {"factor": float("inf")}),
        ("scale", [(2, 3)], [(2, 3)], {"factor": True}),
        ("softcap", [(2, 3)], [(2, 3)], {"cap": 0.0}),
        ("linear", [(2, 3), (4, 5)], [(2, 4)], {}),
        ("linear", [(2, 3), (4, 3)], [(2, 3)], {}),
        ("linear_onednn", [(2, 3), (4, 3)], [(2, 4)], {}),
        ("gated_activation", [(2, 3), (2, 3)], [(2, 3)], {"activation": "tanh"}),
        ("activation", [(2, 3)], [(2, 4)], {"kind": "relu"}),
        ("layer_norm", [(2, 3), (4,)], [(2, 3)], {"eps": 1e-5}),
        ("layer_norm", [(2, 3), (3,), (2,)], [(2, 3)], {"eps": 1e-5}),
        ("layer_norm", [(2, 3), (3,)], [(2, 3)], {"eps": 0.0}),
        ("gather_rows", [(2, 3), (2,)], [(2, 3)], {}),
        ("rms_norm", [(2, 3), (4,)], [(2, 3)], {"eps": 1e-5}),
        ("rms_norm", [(2, 3), (3,)], [(2, 3)], {"eps": 0.0}),
        ("rope", [(2, 3, 4), (2, 6), (2, 6)], [(2, 3, 4)], {}),
        ("rope", [(2, 3, 4), (2, 3), (2, 3)], [(2, 3, 4)], {}),
    ],
)
def test_wrong_operands_are_refused(
    name: str, inputs: list[tuple[int, ...]], outputs: list[tuple[int, ...]], attributes: dict[str, Any]
) -> None:
    with pytest.raises(PlanError):
        bind(name, [torch.zeros(shape) for shape in inputs], [torch.zeros(shape) for shape in outputs], None, **attributes)
