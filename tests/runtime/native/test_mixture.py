"""Native routing and experts, against the definitions in float64 and the same functions of the library."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenspeed.plans.errors import PlanError
from tokenspeed.plans.weight_layout import stored_bytes
from tokenspeed.runtime.native.records import PackedWeight

from ..functions import calling
from ..functions.calling import error, poisoned, random
from ..functions.test_mixture import by_definition, drawn, routed
from .calling import MACHINES, call, empty_packed, on_every_machine
from .panels import GGML, packed, quantised

CLAMPS = {"alpha": 1.7, "limit": 0.7}
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "swiglu_clamped", "silu_clamped")


def route(
    machine: str, logits: torch.Tensor, bias: torch.Tensor | None, top_k: int, threads: int = 2, **how: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    indices, weights = torch.full((len(logits), top_k), -1, dtype=torch.int32), poisoned(len(logits), top_k)
    inputs = [logits] if bias is None else [logits, bias]
    call(machine, "moe_route", inputs, [indices, weights], threads, top_k=top_k, **how)
    return indices, weights


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([*MACHINES]),
    st.integers(1, 5),
    st.sampled_from([(8, 1, 1, 1), (8, 4, 2, 2), (12, 3, 2, 1), (16, 4, 1, 3), (6, 2, 2, 2), (40, 1, 1, 1)]),
    st.sampled_from(["softmax", "sigmoid", "softmax_selected"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1.0, 2.5]),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 100),
)
def test_routes_are_those_of_the_definition(
    machine: str,
    rows: int,
    shape: tuple[int, int, int, int],
    scoring: str,
    normalize: bool,
    biased: bool,
    scale: float,
    dtype: torch.dtype,
    seed: int,
) -> None:
    experts, groups, top_groups, group_best = shape if scoring != "softmax_selected" else (shape[0], 1, 1, 1)
    top_k = min(3, experts // groups * top_groups)
    # no two alike, in bfloat16 either
    order = torch.stack([torch.randperm(experts + 3, generator=torch.Generator().manual_seed(seed + r)) for r in range(rows)])
    logits = ((order - experts / 2) / 16).to(dtype)[:, 2 : experts + 2]
    bias = random(experts, seed=seed + 1) * 0.3 if biased and scoring != "softmax_selected" else None
    how: dict[str, Any] = {"scoring": scoring, "normalize": normalize, "scale": scale}
    how |= {"groups": groups, "top_groups": top_groups, "group_best": group_best}
    indices, weights = route(machine, logits, bias, top_k, **how)
    for row in range(rows):
        expected = routed(logits[row], bias, top_k, **how)
        got = dict(zip(indices[row].tolist(), weights[row].tolist(), strict=True))
        assert got.keys() == expected.keys()
        assert all(abs(got[e] - expected[e]) < 1e-5 for e in expected)


@on_every_machine
@pytest.mark.parametrize("scoring", ["softmax", "sigmoid", "softmax_selected"])
def test_routes_are_experts_even_where_logits_are_not_numbers(machine: str, scoring: str) -> None:
    logits = random(4, 8)
    logits[0, 5], logits[1], logits[2, 3] = float("nan"), float("nan"), float("inf")
    indices, weights = route(machine, logits, None, 3, scoring=scoring)
    assert all(len({*row}) == 3 and {*row} <= {*range(8)} for row in indices.tolist())
    assert weights[0].isnan().any() and weights[1].isnan().all() and weights[3].isfinite().all()


@on_every_machine
def test_routes_do_not_depend_on_threads(machine: str) -> None:
    logits = random(37, 24)
    first, *others = [route(machine, logits, None, 4, threads, scoring="sigmoid", normalize=True) for threads in (1, 2, 3)]
    assert all(torch.equal(*pair) for other in others for pair in zip(first, other, strict=True))


@pytest.mark.parametrize(
    "change", [{"top_k": 9}, {"groups": 3}, {"groups": 4, "top_groups": 1, "group_best": 1}, {"scoring": "relu"}, {"logits": 7}]
)
def test_wrong_routes_are_refused(change: dict[str, Any]) -> None:
    made = {"top_k": 3, "scoring": "sigmoid"} | change
    logits = random(2, 8)[:, :: 2 if made.pop("logits", None) else 1]
    outputs = [torch.zeros(2, made["top_k"], dtype=torch.int32), poisoned(2, made["top_k"])]
    with pytest.raises(PlanError):
        call(next(iter(MACHINES)), "moe_route", [logits], outputs, **made)


def experts(machine: str, inputs: list[torch.Tensor | PackedWeight], threads: int = 2, activation: str = "silu") -> torch.Tensor:
    """The sum, written into a window of a poisoned matrix whose rest must stay as it was."""
    x = inputs[0]
    assert isinstance(x, torch.Tensor)
    frame = poisoned(len(x) + 2, x.shape[1] + 7, dtype=x.dtype)
    out = frame[1:-1, 3:-4]
    clamps = CLAMPS if activation.endswith("_clamped") else {}
    call(machine, "moe_experts", inputs, [out], threads, activation=activation, **clamps)
    outside = torch.ones(frame.shape, dtype=torch.bool)
    outside[1:-1, 3:-4] = False
    assert frame[outside].isnan().all()
    return out


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from([*MACHINES]),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.sampled_from(["f32", "bf16"]),
    st.integers(1, 40),
    st.integers(1, 4),
    st.sampled_from([4, 7, 64]),
    st.sampled_from([(12, 5), (40, 24), (96, 33)]),
    st.sampled_from(ACTIVATIONS),
    st.booleans(),
    st.integers(0, 100),
)
def test_experts_are_those_of_the_definition(
    machine: str,
    dtype: torch.dtype,
    weight_type: str,
    rows: int,
    top_k: int,
    count: int,
    sizes: tuple[int, int],
    activation: str,
    biased: bool,
    seed: int,
) -> None:
    hidden, inner = sizes
    x, indices, weights, gate_up, down = drawn(rows, top_k, count, hidden, inner, seed)
    x = x.to(dtype)
    if weight_type == "bf16":
        gate_up, down = gate_up.bfloat16(), down.bfloat16()
    biases = [random(count, 2 * inner, seed=seed + 5), random(count, hidden, seed=seed + 6)] if biased else []
    parts = [packed(machine, gate_up, weight_type), packed(machine, down, weight_type)]
    found = experts(machine, [x, indices, weights, *parts, *biases], activation=activation)
    expected = by_definition(x, indices, weights, [gate_up, down, *biases], activation)
    bound = 2e-5 if dtype == torch.float32 else 0.03 * float(expected.abs().max())
    assert error(found, expected) < bound


@on_every_machine
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_experts_are_those_of_the_library(machine: str, activation: str) -> None:
    """In bfloat16, weights of x's type, x a window."""
    x, indices, weights, gate_up, down = (t if t.dtype == torch.int32 else t.bfloat16() for t in drawn(9, 2, 5, 32, 24, 4))
    wide = random(9, 50, seed=9, dtype=torch.bfloat16)
    wide[:, 8:40] = x
    parts = [packed(machine, gate_up, "bf16"), packed(machine, down, "bf16")]
    found = experts(machine, [wide[:, 8:40], indices, weights, *parts], activation=activation)
    out = poisoned(9, 32, dtype=torch.bfloat16)
    clamps = CLAMPS if activation.endswith("_clamped") else {}
    calling.call("moe_experts", [x, indices, weights, gate_up, down], [out], activation=activation, **clamps)
    assert error(found.float(), out.float()) < 0.02 * float(out.float().abs().max())


@on_every_machine
@pytest.mark.parametrize("biased", [False, True])
def test_shares_of_the_experts_add_up(machine: str, biased: bool) -> None:
    """Four of seven, the other three, and a share that no row wants."""
    x, indices, weights, gate_up, down = drawn(9, 3, 7, 32, 24, 8)
    biases = [random(7, 48, seed=5), random(7, 32, seed=6)] if biased else []
    total = torch.zeros(9, 32)
    for first, stop in ((0, 4), (4, 7)):
        parts = [packed(machine, part[first:stop].contiguous(), "f32") for part in (gate_up, down)]
        own = [bias[first:stop].contiguous() for bias in biases]
        numbers = torch.arange(first, stop, dtype=torch.int32)
        total += experts(machine, [x, indices, weights, *parts, *own, numbers])
        assert not experts(machine, [x, indices, weights, *parts, *own, numbers + 7]).any()
    assert error(total, by_definition(x, indices, weights, [gate_up, down, *biases], "silu")) < 2e-5
    with pytest.raises(PlanError, match="numbers"):
        experts(machine, [x, indices, weights, *parts, *own, numbers.long()])


def packed_blocks(machine: str, weight: torch.Tensor, dtype: str) -> tuple[PackedWeight, torch.Tensor]:
    """[E, N, K] in blocks, and the values they stand for."""
    flat = weight.reshape(-1, weight.shape[2])
    return packed(machine, weight, dtype), quantised(flat, dtype)[1].reshape(weight.shape)


@on_every_machine
@pytest.mark.parametrize("dtype", GGML)
@pytest.mark.parametrize("rows", [1, 23])
def test_quantised_experts(machine: str, dtype: str, rows: int) -> None:
    """Within what rounding activations to 8 bits in groups of 32 may cost."""
    x, indices, weights, gate_up, down = drawn(rows, 3, 6, 96, 64, 2)
    (first, up_values), (second, down_values) = (packed_blocks(machine, weight, dtype) for weight in (gate_up, down))
    found = experts(machine, [x, indices, weights, first, second])
    expected = by_definition(x, indices, weights, [up_values, down_values], "silu")
    assert error(found, expected) < 0.02 * float(expected.abs().max())


@on_every_machine
@pytest.mark.parametrize("types", [("f32", "f32"), ("bf16", "bf16"), ("q4_0", "q8_0"), ("q4_1", "f32")])
@pytest.mark.parametrize("rows", [1, 5, 130])
def test_the_same_bits_from_any_number_of_threads_and_rows(machine: str, types: tuple[str, str], rows: int) -> None:
    x, indices, weights, gate_up, down = drawn(rows, 2, 3, 64, 96, 3)
    x = x.to(torch.bfloat16 if "bf16" in types else torch.float32)
    parts = [packed(machine, gate_up, types[0]), packed(machine, down, types[1])]
    first = experts(machine, [x, indices, weights, *parts], threads=1)
    assert first.isfinite().all()
    for threads in (2, 3):
        assert torch.equal(first, experts(machine, [x, indices, weights, *parts], threads))
    for row in range(0, rows, 29):
        alone = [part[row : row + 1] for part in (x, indices, weights)]
        assert torch.equal(first[row], experts(machine, [*alone, *parts])[0])


@on_every_machine
def test_many_rows_of_one_expert(machine: str) -> None:
    """More than a task takes; the other experts get none."""
    x, _, _, gate_up, down = drawn(500, 1, 4, 32, 24, 5)
    indices, weights = torch.full((500, 1), 2, dtype=torch.int32), torch.ones(500, 1)
    found = experts(machine, [x, indices, weights, packed(machine, gate_up, "f32"), packed(machine, down, "f32")])
    gate, up = (x.double() @ gate_up[2].double().T).chunk(2, -1)
    expected = (torch.nn.functional.silu(gate) * up) @ down[2].double().T
    assert error(found, expected) < 1e-5


@on_every_machine
def test_a_choice_that_is_no_expert_makes_its_row_nan(machine: str) -> None:
    x, indices, weights, gate_up, down = drawn(4, 2, 5, 32, 24, 6)
    indices[1, 1], indices[2, 0] = -1, 5
    parts = [packed(machine, gate_up, "f32"), packed(machine, down, "f32")]
    found = experts(machine, [x, indices, weights, *parts])
    assert found[1:3].isnan().all() and found[::3].isfinite().all()


def test_no_rows() -> None:
    machine = next(iter(MACHINES))
    _, _, _, gate_up, down = drawn(1, 2, 3, 32, 24, 6)
    parts = [packed(machine, gate_up, "f32"), packed(machine, down, "f32")]
    none = [random(0, 32), torch.zeros(0, 2, dtype=torch.int32), random(0, 2)]
    assert experts(machine, [*none, *parts]).shape == (0, 32)


def test_wrong_experts_are_refused() -> None:
    machine = next(iter(MACHINES))
    x, indices, weights, gate_up, down = drawn(3, 2, 4, 40, 24, 0)
    first, second = packed(machine, gate_up, "f32"), packed(machine, down, "f32")
    block = empty_packed((4, 48, 40), "q8_0", stored_bytes((4, 48, 64), "q8_0", "panel"))
    wrong: list[list[torch.Tensor | PackedWeight]] = [
        [x, indices, weights, first],
        [x, indices, weights, gate_up, second],
        [x, indices.long(), weights, first, second],
        [x, indices, weights.bfloat16(), first, second],
        [x, indices, weights[:, :1], first, second],
        [x[:2], indices, weights, first, second],
        [x[:, :39], indices, weights, first, second],
        [x, indices, weights, second, second],
        [x, indices, weights, first, packed(machine, down[:3], "f32")],
        [x, indices, weights, block, second],
        [x, indices, weights, first, second, random(4, 48)],
        [x, indices, weights, first, second, random(4, 47), random(4, 40)],
    ]
    for inputs in wrong:
        with pytest.raises(PlanError):
            call(machine, "moe_experts", inputs, [poisoned(3, 40)], activation="silu")
    with pytest.raises(PlanError):
        call(machine, "moe_experts", [x, indices, weights, first, second], [poisoned(3, 40)], activation="relu")
