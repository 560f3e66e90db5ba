"""Routing and experts against plain loops in float64: every scoring, groups, biases, ragged loads, strided inputs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenspeed.plans.errors import PlanError
from tokenspeed.runtime.functions.base import Context

from .calling import bind, call, error, poisoned, random

PLAIN: dict[str, Any] = {"scoring": "softmax", "normalize": False, "scale": 1.0, "groups": 1, "top_groups": 1, "group_best": 1}


def routed(logits: torch.Tensor, bias: torch.Tensor | None, top_k: int, **given: Any) -> dict[int, float]:
    """Expert -> weight for one row, by the definition."""
    how = PLAIN | given
    values = logits.double().tolist()
    experts = range(len(values))
    if how["scoring"] == "softmax_selected":
        chosen = sorted(experts, key=lambda e: -values[e])[:top_k]
        total = sum(math.exp(values[e]) for e in chosen)
        scores = {e: math.exp(values[e]) / total for e in chosen}
    else:
        total = sum(math.exp(v) for v in values)
        made = [1 / (1 + math.exp(-v)) if how["scoring"] == "sigmoid" else math.exp(v) / total for v in values]
        choice = [score + (float(bias[e]) if bias is not None else 0.0) for e, score in enumerate(made)]
        size = len(values) // how["groups"]
        groups = [sorted(choice[g * size : (g + 1) * size], reverse=True) for g in range(how["groups"])]
        best = sorted(range(how["groups"]), key=lambda g: -sum(groups[g][: how["group_best"]]))[: how["top_groups"]]
        allowed = [e for e in experts if e // size in best]
        scores = {e: made[e] for e in sorted(allowed, key=lambda e: -choice[e])[:top_k]}
    divisor = sum(scores.values()) if how["normalize"] else 1.0
    return {e: score / divisor * how["scale"] for e, score in scores.items()}


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5),
    st.sampled_from([(8, 1, 1, 1), (8, 4, 2, 2), (12, 3, 2, 1), (16, 4, 1, 3), (6, 2, 2, 2)]),
    st.sampled_from(["softmax", "sigmoid", "softmax_selected"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1.0, 2.5]),
    st.integers(0, 100),
)
def test_routes_are_those_of_the_definition(
    rows: int, shape: tuple[int, int, int, int], scoring: str, normalize: bool, biased: bool, scale: float, seed: int
) -> None:
    experts, groups, top_groups, group_best = shape if scoring != "softmax_selected" else (shape[0], 1, 1, 1)
    top_k = min(3, experts // groups * top_groups)
    logits = random(rows, experts + 3, seed=seed)[:, 2 : experts + 2]
    bias = random(experts, seed=seed + 1) * 0.3 if biased and scoring != "softmax_selected" else None
    how = {"scoring": scoring, "normalize": normalize, "scale": scale}
    how |= {"groups": groups, "top_groups": top_groups, "group_best": group_best}
    indices, weights = torch.full((rows, top_k), -1, dtype=torch.int32), poisoned(rows, top_k)
    call("moe_route", [logits, *([bias] if bias is not None else [])], [indices, weights], top_k=top_k, **how)
    for row in range(rows):
        expected = routed(logits[row], bias, top_k, **how)
        got = dict(zip(indices[row].tolist(), weights[row].tolist(), strict=True))
        assert got.keys() == expected.keys()
        assert all(abs(got[e] - expected[e]) < 1e-5 for e in expected)


def test_weights_of_a_route_may_be_rounded() -> None:
    logits = random(3, 8, dtype=torch.bfloat16)
    indices, weights = torch.zeros(3, 2, dtype=torch.int32), poisoned(3, 2, dtype=torch.bfloat16)
    call("moe_route", [logits], [indices, weights], top_k=2, scoring="softmax")
    assert error(weights.float(), logits.float().softmax(-1).topk(2, -1).values) < 4e-3


def by_definition(
    x: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor, parts: list[torch.Tensor], activation: str
) -> torch.Tensor:
    x, weights, *parts = (tensor.double() for tensor in (x, weights, *parts))
    out = torch.zeros_like(x)
    for row in range(len(x)):
        for expert, weight in zip(indices[row].tolist(), weights[row], strict=True):
            columns = parts[0][expert] @ x[row]
            columns = columns + parts[2][expert] if len(parts) > 2 else columns
            gate, up = columns.chunk(2)
            if activation == "swiglu_clamped":
                gate, up = gate.clamp(max=0.7), up.clamp(-0.7, 0.7)
                made = (up + 1) * gate * torch.sigmoid(1.7 * gate)
            elif activation == "silu_clamped":
                made = torch.nn.functional.silu(gate.clamp(max=0.7)) * up.clamp(-0.7, 0.7)
            elif activation == "silu":
                made = gate * torch.sigmoid(gate) * up
            else:
                made = torch.nn.functional.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none") * up
            made = parts[1][expert] @ made
            out[row] += weight * (made + parts[3][expert] if len(parts) > 2 else made)
    return out


def drawn(rows: int, top_k: int, experts: int, hidden: int, inner: int, seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    indices = torch.stack([torch.randperm(experts, generator=generator)[:top_k] for _ in range(rows)]).int()
    gate_up = random(experts, 2 * inner, hidden, seed=seed + 1) * hidden**-0.5
    down = random(experts, hidden, inner, seed=seed + 2) * inner**-0.5
    return random(rows, hidden, seed=seed + 3), indices, random(rows, top_k, seed=seed + 4).abs(), gate_up, down


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 4),
    st.sampled_from([4, 7]),
    st.sampled_from(["silu", "gelu", "gelu_tanh", "swiglu_clamped", "silu_clamped"]),
    st.booleans(),
    st.integers(0, 100),
)
def test_experts_are_those_of_the_definition(
    rows: int, top_k: int, experts: int, activation: str, biased: bool, seed: int
) -> None:
    x, indices, weights, gate_up, down = drawn(rows, top_k, experts, 12, 5, seed)
    biases = [random(experts, 10, seed=seed + 5), random(experts, 12, seed=seed + 6)] if biased else []
    out = poisoned(rows, 12)
    clamps = {"alpha": 1.7, "limit": 0.7} if activation.endswith("_clamped") else {}
    call("moe_experts", [x, indices, weights, gate_up, down, *biases], [out], activation=activation, **clamps)
    assert error(out, by_definition(x, indices, weights, [gate_up, down, *biases], activation)) < 1e-5


@pytest.mark.parametrize("biased", [False, True])
def test_shares_of_the_experts_add_up(biased: bool) -> None:
    """Four of seven and the other three, which zeros fill up."""
    x, indices, weights, gate_up, down = drawn(9, 3, 7, 12, 5, 8)
    biases = [random(7, 10, seed=5), random(7, 12, seed=6)] if biased else []
    total = torch.zeros(9, 12)
    for first in (0, 4):
        parts = [
            torch.nn.functional.pad(part[first : first + 4], (0, 0) * (part.ndim - 1) + (0, first // 4))
            for part in (gate_up, down, *biases)
        ]
        numbers = torch.tensor([first, *range(first + 1, min(first + 4, 7))] + [0] * (first // 4), dtype=torch.int32)
        out = poisoned(9, 12)
        call("moe_experts", [x, indices, weights, *parts, numbers], [out], activation="silu")
        total += out
    assert error(total, by_definition(x, indices, weights, [gate_up, down, *biases], "silu")) < 1e-5


def test_experts_read_windows_and_run_again() -> None:
    """x a window of a wider buffer; a second launch gives the same, and nothing of the first is left in it."""
    x, indices, weights, gate_up, down = drawn(6, 2, 5, 8, 3, 1)
    wide = random(6, 20, seed=9)
    wide[:, 4:12] = x
    out, context = poisoned(6, 8), Context()
    launch = bind("moe_experts", [wide[:, 4:12], indices, weights, gate_up, down], [out], context, activation="silu")
    expected = by_definition(x, indices, weights, [gate_up, down], "silu")
    for _ in range(2):
        launch()
        assert error(out, expected) < 1e-5
    indices.copy_((indices + 1) % 5)
    launch()
    assert error(out, by_definition(x, indices, weights, [gate_up, down], "silu")) < 1e-5


@pytest.mark.parametrize("weight_type", [torch.bfloat16, torch.float32])
def test_experts_in_bf16_add_up_in_f32(weight_type: torch.dtype) -> None:
    made = drawn(7, 3, 6, 32, 16, 3)
    x, gate_up, down = (made[at].bfloat16() for at in (0, 3, 4))
    out = poisoned(7, 32, dtype=torch.bfloat16)
    call("moe_experts", [x, made[1], made[2].to(weight_type), gate_up, down], [out], activation="silu")
    expected = by_definition(x, made[1], made[2], [gate_up, down], "silu")
    assert error(out, expected) < 0.03 * float(expected.abs().max())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"scoring": "relu"}, "one of softmax"),
        ({"top_k": 9}, "1 to E experts"),
        ({"groups": 3}, "groups that divide"),
        ({"groups": 4, "top_groups": 1, "group_best": 1}, "enough experts"),
        ({"scoring": "softmax_selected", "groups": 2}, "no bias or groups"),
    ],
)
def test_wrong_routes_are_refused(change: dict[str, Any], expected: str) -> None:
    outputs = [torch.zeros(2, 3, dtype=torch.int32), poisoned(2, 3)]
    if change.get("top_k"):
        outputs = [torch.zeros(2, 9, dtype=torch.int32), poisoned(2, 9)]
    with pytest.raises(PlanError, match=expected):
        bind("moe_route", [random(2, 8)], outputs, **{"top_k": 3, "scoring": "sigmoid"} | change)


def test_wrong_experts_are_refused() -> None:
    x, indices, weights, gate_up, down = drawn(3, 2, 4, 8, 5, 0)
    wrong: list[list[torch.Tensor]] = [
        [x, indices.long(), weights, gate_up, down],
        [x, indices, weights[:, :1], gate_up, down],
        [x, indices, weights, gate_up[:, :9], down],
        [x, indices, weights, gate_up, down, random(4, 10)],
        [x, indices, weights, gate_up, down, random(4, 9), random(4, 8)],
        [x, indices, weights, gate_up, down.bfloat16()],
        [x, indices, weights, gate_up, down, torch.zeros(3, dtype=torch.int32)],
        [x, indices, weights, gate_up, down, torch.zeros(4)],
    ]
    for inputs in wrong:
        with pytest.raises(PlanError):
            bind("moe_experts", inputs, [poisoned(3, 8)], activation="silu")
    with pytest.raises(PlanError, match="one of silu"):
        bind("moe_experts", [x, indices, weights, gate_up, down], [poisoned(3, 8)], activation="relu")
