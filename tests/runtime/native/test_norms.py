"""Native norms against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenspeed.ir.reference import rms_norm

from ..functions.calling import error, poisoned, random
from .calling import MACHINES, call, on_every_machine

TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 2e-2}


@settings(max_examples=25, deadline=None)
@given(
    machine=st.sampled_from([*MACHINES]),
    dtype=st.sampled_from([*TOLERANCES]),
    rows=st.integers(1, 9),
    features=st.integers(1, 200),
    plus=st.booleans(),
    first=st.booleans(),
)
def test_rms_norm(machine: str, dtype: torch.dtype, rows: int, features: int, plus: bool, first: bool) -> None:
    merged = random(rows, features + 7, seed=rows, dtype=dtype)
    x, weight, out = merged[:, 5 : 5 + features], random(features, seed=1, dtype=dtype), poisoned(rows, features, dtype=dtype)
    call(machine, "rms_norm", [x, weight], [out], eps=1e-5, one_plus_weight=plus, cast_before_weight=first)
    assert error(out, rms_norm(x.double(), weight.double(), 1e-5, plus)) <= TOLERANCES[dtype] * 4


@settings(max_examples=25, deadline=None)
@given(
    machine=st.sampled_from([*MACHINES]),
    dtype=st.sampled_from([*TOLERANCES]),
    rows=st.integers(1, 9),
    features=st.integers(1, 200),
    biased=st.booleans(),
)
def test_layer_norm(machine: str, dtype: torch.dtype, rows: int, features: int, biased: bool) -> None:
    x = random(rows, features + 3, seed=rows, dtype=dtype)[:, 2 : 2 + features] + 0.5
    weight, bias = random(features, seed=1, dtype=dtype), random(features, seed=2, dtype=dtype)
    out = poisoned(rows, features, dtype=dtype)
    call(machine, "layer_norm", [x, weight, bias] if biased else [x, weight], [out], eps=1e-3)
    wide = [item.double() for item in (x, weight, bias)]
    expected = torch.nn.functional.layer_norm(wide[0], [features], wide[1], wide[2] if biased else None, 1e-3)
    assert error(out, expected) <= TOLERANCES[dtype] * 8


@on_every_machine
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_heads_and_added_residual(machine: str, dtype: torch.dtype) -> None:
    x, weight, out = random(5, 3, 24, dtype=dtype), random(24, seed=2, dtype=dtype), poisoned(5, 3, 24, dtype=dtype)
    call(machine, "rms_norm", [x, weight], [out], eps=1e-6)
    assert error(out, rms_norm(x.double(), weight.double(), 1e-6, False)) <= TOLERANCES[dtype] * 4
    x, residual, weight = random(7, 50, dtype=dtype), random(7, 50, seed=3, dtype=dtype), random(50, seed=4, dtype=dtype)
    total, out = poisoned(7, 50, dtype=dtype), poisoned(7, 50, dtype=dtype)
    call(machine, "add_rms_norm", [x, residual, weight], [total, out], eps=1e-6)
    assert torch.equal(total, x + residual)
    assert error(out, rms_norm(total.double(), weight.double(), 1e-6, False)) <= TOLERANCES[dtype] * 4
