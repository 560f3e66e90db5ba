"""Native elementwise functions, activations and row copies against float64, on windows of merged buffers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenspeed.plans.errors import PlanError

from ..functions.calling import error, poisoned, random
from .calling import MACHINES, call, on_every_machine

f32, bf16 = torch.float32, torch.bfloat16
machines, dtypes, threads = st.sampled_from([*MACHINES]), st.sampled_from([f32, bf16]), st.integers(1, 3)
ACTIVATIONS = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "relu": torch.relu,
    "relu2": lambda x: torch.relu(x).square(),
}


def rounding(dtype: torch.dtype, ulps: float = 4.0) -> float:
    """A relative tolerance."""
    return ulps * (2**-24 if dtype == f32 else 2**-8)


def is_close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, ulps: float = 4.0) -> bool:
    return bool(((found.double() - expected).abs() <= rounding(dtype, ulps) * (expected.abs() + 1e-2)).all())


@settings(max_examples=40, deadline=None)
@given(machine=machines, dtype=dtypes, threads=threads, rows=st.integers(1, 9), columns=st.integers(1, 700))
def test_elementwise(machine: str, dtype: torch.dtype, threads: int, rows: int, columns: int) -> None:
    merged = random(rows, 2 * columns, dtype=dtype)
    a, b = merged[:, :columns], merged[:, columns:]
    other = bf16 if dtype == f32 else f32
    cases = (
        ("add", [a, b], {}, (a + b).double(), dtype),
        ("mul", [a, b], {}, (a * b).double(), dtype),
        ("scale", [a], {"factor": 0.37}, (a * 0.37).double(), dtype),
        ("copy", [b], {}, b.double(), dtype),
        ("copy", [b], {}, b.to(other).double(), other),
        ("softcap", [a], {"cap": 2.5}, torch.tanh(a.double() / 2.5) * 2.5, dtype),
    )
    for name, inputs, attributes, expected, kind in cases:
        around = poisoned(rows, columns + 2, dtype=kind)
        call(machine, name, [*inputs], [around[:, 1:-1]], threads, **attributes)
        assert is_close(around[:, 1:-1], expected, dtype, 0 if name != "softcap" else 8), name
        assert around[:, [0, -1]].isnan().all()


@on_every_machine
def test_operands_of_any_strides(machine: str) -> None:
    whole = random(6, 5, 40)
    a, b = whole.transpose(0, 2)[:, :, 1:], whole[:5, :, ::2].permute(2, 1, 0)[:1].expand(40, 5, 5)
    out = poisoned(5, 40, 10).transpose(0, 1)[:, :, ::2]
    call(machine, "add", [a, b], [out])
    assert torch.equal(out, a + b)
    call(machine, "add", [out, b], [out])
    assert torch.equal(out, a + b + b)


@on_every_machine
def test_copies_of_integers(machine: str) -> None:
    for dtype in (torch.int64, torch.int32, torch.int8, torch.uint8):
        source, out = torch.arange(7 * 33).view(7, 33).to(dtype), torch.zeros(7, 40, dtype=dtype)
        call(machine, "copy", [source], [out[:, 3:36]])
        assert torch.equal(out[:, 3:36], source) and not out[:, 36:].any()


@settings(max_examples=30, deadline=None)
@given(
    machine=machines,
    dtype=dtypes,
    threads=threads,
    rows=st.integers(1, 9),
    columns=st.integers(1, 700),
    activation=st.sampled_from([*ACTIVATIONS]),
)
def test_activations(machine: str, dtype: torch.dtype, threads: int, rows: int, columns: int, activation: str) -> None:
    merged, out = 3 * random(rows, 2 * columns, dtype=dtype), poisoned(rows, columns, dtype=dtype)
    gate, up = merged[:, :columns], merged[:, columns:]
    exact = ACTIVATIONS[activation](gate.double())
    call(machine, "activation", [gate], [out], threads, kind=activation)
    assert is_close(out, exact, dtype, 12 if dtype == f32 else 1.01)
    call(machine, "gated_activation", [gate, up], [out], threads, activation=activation)
    expected = exact * up.double() if dtype == f32 else (exact.to(bf16) * up).double()
    assert is_close(out, expected, dtype, 24 if dtype == f32 else 4)


@on_every_machine
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_far_out(machine: str, activation: str) -> None:
    x = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 30.0, -30.0, 1e4, -1e4, float("inf"), float("nan"), -3.0, 3.0])
    out = poisoned(1, len(x))
    call(machine, "activation", [x[None]], [out], kind=activation)
    expected = ACTIVATIONS[activation](x.double())
    assert out[0, 9].isnan() and out[0, 8] == float("inf")
    usable = [0, 1, 2, 3, 4, 5, 6, 7, 10, 11]
    assert is_close(out[0, usable], expected[usable], f32, 12)


@on_every_machine
def test_softcap_at_its_limits(machine: str) -> None:
    x, out = torch.tensor([[0.0, 1e-6, -1e-3, 0.6, 0.63, 1e3, -1e3, float("inf"), float("nan")]]), poisoned(1, 9)
    call(machine, "softcap", [x], [out], cap=1.0)
    expected = torch.tanh(x.double())
    assert out[0, 8].isnan() and ((out - expected)[0, :8].abs() <= 2e-7 * expected[0, :8].abs()).all()


@on_every_machine
@pytest.mark.parametrize("dtype", [f32, bf16])
def test_gather_rows(machine: str, dtype: torch.dtype) -> None:
    table, picked = random(11, 700, dtype=dtype)[:, 5:606], torch.tensor([3, 10, 0, 3, 1], dtype=torch.int32)
    for count in (1, 5):
        out = poisoned(count, 601, dtype=dtype)
        call(machine, "gather_rows", [table, picked[:count]], [out], threads=3)
        assert torch.equal(out, table[picked[:count].long()])


@on_every_machine
def test_tokens_not_known_yet_come_from_the_slot(machine: str) -> None:
    ids = torch.tensor([7, -1, 0, -1, 3] * 40, dtype=torch.int32)
    slots = torch.tensor([0, 2, 1, -1, -1] * 40, dtype=torch.int32)
    tokens = torch.full((200,), 99, dtype=torch.int32)
    call(machine, "take_last_tokens", [ids, slots, torch.tensor([10, 11, 12], dtype=torch.int32)], [tokens], threads=3)
    assert tokens.tolist() == [7, 12, 0, 0, 0] * 40


@pytest.mark.parametrize(
    ("name", "inputs", "outputs", "attributes"),
    [
        ("add", [(2, 3), (2, 4)], [(2, 3)], {}),
        ("add", [(2, 3)], [(2, 3)], {}),
        ("scale", [(2, 3)], [(2, 3)], {}),
        ("softcap", [(2, 3)], [(2, 3)], {"cap": 0.0}),
        ("copy", [(2, 3)], [(3, 2)], {}),
        ("activation", [(2, 3)], [(2, 4)], {"kind": "silu"}),
        ("activation", [(2, 3)], [(2, 3)], {"kind": "tanh"}),
        ("gated_activation", [(2, 3), (2, 4)], [(2, 3)], {"activation": "silu"}),
        ("gather_rows", [(2, 3), (2,)], [(2, 3)], {}),
        ("take_last_tokens", [(2,), (2,), (2,)], [(2,)], {}),
    ],
)
def test_wrong_operands_are_refused(
    name: str, inputs: list[tuple[int, ...]], outputs: list[tuple[int, ...]], attributes: dict[str, Any]
) -> None:
    arrays, results = [random(*shape) for shape in inputs], [random(*shape) for shape in outputs]
    with pytest.raises(PlanError):
        call(next(iter(MACHINES)), name, [*arrays], [*results], **attributes)


def test_results_do_not_depend_on_the_threads() -> None:
    gate, up = random(3, 1000), random(3, 1000, seed=1)
    found = [poisoned(3, 1000) for _ in range(3)]
    for machine in MACHINES:
        for threads, out in enumerate(found, 1):
            call(machine, "gated_activation", [gate, up], [out], threads, activation="gelu")
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
        assert error(found[0], torch.nn.functional.gelu(gate) * up) < 1e-5
