"""Norms, rope tables, rope, and the KV writes, each against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenspeed.runtime.functions.base import Context

from .calling import bind, call, error, poisoned, random

f32, bf16 = torch.float32, torch.bfloat16


def exact_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, plus: bool) -> torch.Tensor:
    wide = x.double()
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * (weight.double() + plus)


shapes = st.one_of(
    st.tuples(st.integers(0, 9), st.integers(1, 900)), st.tuples(st.integers(0, 70), st.integers(1, 5), st.integers(1, 130))
)


@settings(max_examples=40, deadline=None)
@given(shape=shapes, cast_first=st.booleans(), plus=st.booleans(), dtype=st.sampled_from([f32, bf16]))
def test_rms_norm(shape: tuple[int, ...], cast_first: bool, plus: bool, dtype: torch.dtype) -> None:
    wide = random(*shape[:-1], 2 * shape[-1], dtype=dtype)
    x, weight, out = wide[..., : shape[-1]], random(shape[-1], seed=1, dtype=dtype), poisoned(*shape, dtype=dtype)
    call("rms_norm", [x, weight], [out], eps=1e-5, cast_before_weight=cast_first, one_plus_weight=plus)
    expected = exact_norm(x, weight, 1e-5, plus)
    tolerance = (4e-6 if dtype == f32 else 0.02) * (1 + float(expected.abs().max()) if expected.numel() else 1)
    assert error(out, expected) <= tolerance


@settings(max_examples=30, deadline=None)
@given(shape=shapes, biased=st.booleans(), dtype=st.sampled_from([f32, bf16]))
def test_layer_norm(shape: tuple[int, ...], biased: bool, dtype: torch.dtype) -> None:
    wide = random(*shape[:-1], 2 * shape[-1], dtype=dtype)
    x, affine = wide[..., : shape[-1]], [random(shape[-1], seed=seed, dtype=dtype) for seed in range(1, 2 + biased)]
    out = poisoned(*shape, dtype=dtype)
    call("layer_norm", [x, *affine], [out], eps=1e-5)
    centred = x.double() - x.double().mean(-1, keepdim=True)
    expected = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-5) * affine[0].double()
    expected = expected + affine[1].double() if biased else expected
    tolerance = (1e-5 if dtype == f32 else 0.02) * (1 + float(expected.abs().max()) if expected.numel() else 1)
    assert error(out, expected) <= tolerance


def test_large_norms_work_in_blocks_of_rows() -> None:
    x, weight, out = random(300, 4096, dtype=bf16), random(4096, seed=1, dtype=bf16), poisoned(300, 4096, dtype=bf16)
    context = Context()
    bind("rms_norm", [x, weight], [out], context, eps=1e-6)()
    assert error(out, exact_norm(x, weight, 1e-6, False)) < 0.1
    assert context.scratch_bytes < 6 << 20


def test_llama_rounds_before_the_weight() -> None:
    x, weight, out = random(4, 64, dtype=bf16), random(64, seed=1, dtype=bf16), poisoned(4, 64, dtype=bf16)
    call("rms_norm", [x, weight], [out], eps=1e-5, cast_before_weight=True)
    wide = x.float()
    normalised = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)
    assert torch.equal(out, normalised.to(bf16) * weight)
    call("rms_norm", [x, weight], [out], eps=1e-5, cast_before_weight=False)
    assert torch.equal(out, (normalised * weight.float()).to(bf16))


@pytest.mark.parametrize("dtype", [f32, bf16])
@pytest.mark.parametrize("rows", [0, 1, 80])
def test_add_rms_norm_in_place(dtype: torch.dtype, rows: int) -> None:
    x, residual, weight = random(rows, 576, dtype=dtype), random(rows, 576, seed=1, dtype=dtype), random(576, seed=2, dtype=dtype)
    expected, out = x + residual, poisoned(rows, 576, dtype=dtype)
    call("add_rms_norm", [x, residual, weight], [residual, out], eps=1e-5)
    assert torch.equal(residual, expected)
    assert error(out, exact_norm(expected, weight, 1e-5, False)) < (1e-5 if dtype == f32 else 0.1)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(0, 12), half=st.integers(1, 64), scaling=st.sampled_from([1.0, 0.5, 1.2]))
def test_rope_table(rows: int, half: int, scaling: float) -> None:
    positions = torch.arange(rows, dtype=torch.int32) * 37
    frequencies = 10000.0 ** (-torch.arange(half).float() / half)
    cos, sin = poisoned(rows, 2 * half), poisoned(rows, 2 * half)
    call("rope_table", [positions, frequencies], [cos, sin], scaling=scaling, layout="half")
    # float32 angles, as models compute them, then exact cosines
    angles = (positions[:, None].float() * frequencies).double().repeat(1, 2)
    assert error(cos, angles.cos() * scaling) < 1e-6
    assert error(sin, angles.sin() * scaling) < 1e-6


def exact_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = False) -> torch.Tensor:
    count = cos.shape[1]
    turned, rest = x[..., :count].double(), x[..., count:].double()
    if interleaved:
        pairs = torch.view_as_complex(turned.unflatten(-1, (-1, 2)).contiguous())
        real, imaginary = (table[:, None, : count // 2].double() for table in (cos, sin))
        rotated = torch.view_as_real(pairs * torch.complex(real, imaginary)).flatten(-2)
        return torch.cat((rotated, rest), -1)
    half = count // 2
    rotated = torch.cat((-turned[..., half:], turned[..., :half]), -1)
    return torch.cat((turned * cos.double().unsqueeze(1) + rotated * sin.double().unsqueeze(1), rest), -1)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(0, 90),
    heads=st.integers(1, 7),
    dims=st.sampled_from([(64, 64), (64, 16), (6, 6), (2, 2), (10, 4)]),
    dtype=st.sampled_from([f32, bf16]),
    interleaved=st.booleans(),
)
def test_rope(rows: int, heads: int, dims: tuple[int, int], dtype: torch.dtype, interleaved: bool) -> None:
    head_dim, rotated = dims
    merged = random(rows, heads + 2, head_dim, dtype=dtype)
    x, out = merged[:, 1:-1], poisoned(rows, heads, head_dim, dtype=dtype)
    cos, sin = random(rows, rotated, seed=1, dtype=dtype), random(rows, rotated, seed=2, dtype=dtype)
    call("rope", [x, cos, sin], [out], interleaved=interleaved)
    assert error(out, exact_rope(x, cos, sin, interleaved)) < (1e-5 if dtype == f32 else 0.15)
    tables = random(rows, rotated, seed=1), random(rows, rotated, seed=2)
    call("rope", [x, *tables], [out], interleaved=interleaved)
    expected = exact_rope(x, *tables, interleaved)
    assert error(out, expected) <= (1e-5 if dtype == f32 else 2**-8 * (float(expected.abs().max()) if rows else 1))


def test_tables_are_read_anew_at_each_call() -> None:
    """Within a step too: the tables of two kinds of layers may lie in one place, one after the other."""
    context, x, out = Context(), random(1, 3, 8), poisoned(1, 3, 8)
    cos, sin = random(1, 8, seed=1), random(1, 8, seed=2)
    launch = bind("rope", [x, cos, sin], [out], context)
    for turn in range(4):
        context.step = 1 + turn // 2
        sin.copy_(random(1, 8, seed=10 + turn))
        launch()
        assert error(out, exact_rope(x, cos, sin)) < 1e-5


@settings(max_examples=40, deadline=None)
@given(
    slots=st.lists(st.integers(0, 31), unique=True, max_size=20),
    padding=st.integers(0, 3),
    heads=st.integers(1, 3),
    head_dim=st.sampled_from([4, 600]),
    dtype=st.sampled_from([f32, bf16]),
    merged=st.booleans(),
    interleaved=st.booleans(),
)
def test_kv_writes(
    slots: list[int], padding: int, heads: int, head_dim: int, dtype: torch.dtype, merged: bool, interleaved: bool
) -> None:
    mapping = torch.tensor(slots + [-1] * padding, dtype=torch.int64)
    rows, q_heads = len(mapping), 2 * heads
    whole = random(rows, q_heads + 2 * heads, head_dim, dtype=dtype)
    q, k, v = whole.split([q_heads, heads, heads], 1)
    if not merged:
        q, k = q.clone(), k.clone()
    cos, sin = random(rows, head_dim, seed=1, dtype=dtype), random(rows, head_dim, seed=2, dtype=dtype)
    for name in ("kv_write", "rope_kv_write"):
        caches = [poisoned(8, 4, heads, head_dim, dtype=dtype) for _ in range(2)]
        out = poisoned(rows, q_heads, head_dim, dtype=dtype)
        if name == "kv_write":
            call(name, [k, v, mapping], caches)
            expected = k.double()
        else:
            call(name, [q, k, v, cos, sin, mapping], [out, *caches], interleaved=interleaved)
            expected = exact_rope(k, cos, sin, interleaved)
            assert error(out, exact_rope(q, cos, sin, interleaved)) < (2e-5 if dtype == f32 else 0.2)
        k_tokens, v_tokens = (cache.flatten(0, 1) for cache in caches)
        written = mapping >= 0
        assert error(k_tokens[mapping[written]], expected[written]) < (2e-5 if dtype == f32 else 0.2)
        assert torch.equal(v_tokens[mapping[written]], v[written])
        untouched = torch.ones(32, dtype=torch.bool)
        untouched[mapping[written]] = False
        assert k_tokens[untouched].isnan().all() and v_tokens[untouched].isnan().all()
