"""Native rope tables, rope and KV writes against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenspeed.plans.errors import PlanError

from ..functions.calling import error, poisoned, random
from .calling import MACHINES, call, on_every_machine

f32, bf16 = torch.float32, torch.bfloat16
machines, dtypes, threads = st.sampled_from([*MACHINES]), st.sampled_from([f32, bf16]), st.integers(1, 3)


def exact_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    half = cos.shape[1] // 2
    turned, rest = x[..., : 2 * half].double(), x[..., 2 * half :].double()
    a, b = (turned[..., ::2], turned[..., 1::2]) if interleaved else (turned[..., :half], turned[..., half:])
    c, s = cos[:, None, :half].double(), sin[:, None, :half].double()
    pairs = a * c - b * s, b * c + a * s
    return torch.cat((torch.stack(pairs, -1).flatten(-2) if interleaved else torch.cat(pairs, -1), rest), -1)


@on_every_machine
@pytest.mark.parametrize("scaling", [1.0, 1.25])
def test_table_up_to_a_million_positions(machine: str, scaling: float) -> None:
    positions = torch.tensor([0, 1, 2, 3, 710, 8191, 131071, 524287, 999999], dtype=torch.int32)
    frequencies = 10000.0 ** (-torch.arange(37).float() / 37)
    cos, sin = poisoned(9, 76)[:, 1:75], poisoned(9, 74)
    call(machine, "rope_table", [positions, frequencies], [cos, sin], threads=3, scaling=scaling)
    # angles rounded to float32, as models compute them, then exact cosines
    angles = (positions[:, None].float() * frequencies).double().repeat(1, 2)
    for found, expected in ((cos, angles.cos()), (sin, angles.sin())):
        nearest = expected.float() * scaling
        assert ((found - nearest).abs() <= 1.2e-7 * nearest.abs()).all()
    call(machine, "rope_table", [positions, frequencies], [cos.to(bf16), out := poisoned(9, 74, dtype=bf16)])
    assert torch.equal(out, angles.sin().float().to(bf16))


@settings(max_examples=40, deadline=None)
@given(
    machine=machines,
    dtype=dtypes,
    threads=threads,
    rows=st.integers(1, 9),
    heads=st.integers(1, 7),
    dims=st.sampled_from([(64, 64), (128, 128), (64, 16), (6, 6), (2, 2), (10, 4), (80, 80), (24, 24), (96, 72)]),
    interleaved=st.booleans(),
    in_place=st.booleans(),
    wide_tables=st.booleans(),
)
def test_rope(
    machine: str,
    dtype: torch.dtype,
    threads: int,
    rows: int,
    heads: int,
    dims: tuple[int, int],
    interleaved: bool,
    in_place: bool,
    wide_tables: bool,
) -> None:
    head_dim, turned = dims
    table = f32 if wide_tables else dtype
    x = random(rows, heads + 2, head_dim, dtype=dtype)[:, 1:-1]
    out = x if in_place else poisoned(rows, heads, head_dim, dtype=dtype)
    cos, sin = random(rows, turned, seed=1, dtype=table), random(rows, turned, seed=2, dtype=table)
    expected = exact_rope(x, cos, sin, interleaved)
    call(machine, "rope", [x, cos, sin], [out], threads, interleaved=interleaved)
    rounding = 1e-5 if dtype == f32 else 2**-8 * float(expected.abs().max()) if wide_tables else 0.15
    assert error(out, expected) <= rounding


@on_every_machine
def test_rope_rounds_as_eager_models_do(machine: str) -> None:
    x, cos, sin = random(5, 3, 64, dtype=bf16), random(5, 64, seed=1, dtype=bf16), random(5, 64, seed=2, dtype=bf16)
    cos[:, 32:], sin[:, 32:] = cos[:, :32], sin[:, :32]
    out = poisoned(5, 3, 64, dtype=bf16)
    call(machine, "rope", [x, cos, sin], [out])
    turned = torch.cat((x[..., 32:].neg(), x[..., :32]), -1)
    assert torch.equal(out, x * cos[:, None] + turned * sin[:, None])


@settings(max_examples=40, deadline=None)
@given(
    machine=machines,
    dtype=dtypes,
    threads=threads,
    slots=st.lists(st.integers(0, 31), unique=True, max_size=20),
    padding=st.integers(0, 3),
    heads=st.integers(1, 3),
    head_dim=st.sampled_from([4, 64, 100]),
    interleaved=st.booleans(),
    head_major=st.booleans(),
)
def test_kv_writes(
    machine: str,
    dtype: torch.dtype,
    threads: int,
    slots: list[int],
    padding: int,
    heads: int,
    head_dim: int,
    interleaved: bool,
    head_major: bool,
) -> None:
    mapping = torch.tensor(slots + [-1] * padding, dtype=torch.int64)
    rows, q_heads = len(mapping), 2 * heads
    q, k, v = random(rows, q_heads + 2 * heads, head_dim, dtype=dtype).split([q_heads, heads, heads], 1)
    cos, sin = random(rows, head_dim, seed=1, dtype=dtype), random(rows, head_dim, seed=2, dtype=dtype)
    tolerance = 2e-5 if dtype == f32 else 0.2
    for name in ("kv_write", "rope_kv_write"):
        inside = (heads, 4) if head_major else (4, heads)
        caches = [poisoned(8, *inside, head_dim, dtype=dtype) for _ in range(2)]
        if head_major:
            caches = [cache.transpose(1, 2) for cache in caches]
        out, expected = poisoned(rows, q_heads, head_dim, dtype=dtype), k.double()
        if name == "kv_write":
            call(machine, name, [k, v, mapping], [*caches], threads)
        else:
            call(machine, name, [q, k, v, cos, sin, mapping], [out, *caches], threads, interleaved=interleaved)
            expected = exact_rope(k, cos, sin, interleaved)
            assert error(out, exact_rope(q, cos, sin, interleaved)) < tolerance
        k_tokens, v_tokens = (cache.flatten(0, 1) for cache in caches)
        written = mapping >= 0
        assert error(k_tokens[mapping[written]], expected[written]) < tolerance
        assert torch.equal(v_tokens[mapping[written]], v[written])
        untouched = torch.ones(32, dtype=torch.bool)
        untouched[mapping[written]] = False
        assert k_tokens[untouched].isnan().all() and v_tokens[untouched].isnan().all()


def test_wrong_operands_are_refused() -> None:
    machine = next(iter(MACHINES))
    x, table = random(2, 3, 4), random(2, 4)
    for inputs in ([x, random(2, 6), random(2, 6)], [x, random(2, 3), random(2, 3)], [x, table, table.to(bf16)]):
        with pytest.raises(PlanError):
            call(machine, "rope", [*inputs], [random(2, 3, 4)])
    slots, cache = torch.zeros(2, dtype=torch.int64), random(5, 4, 3, 4)
    for mapping, target in (
        (slots.int(), cache),
        (slots[:1], cache),
        (slots, random(5, 4, 2, 4)),
        (slots, random(5, 4, 4, 3).transpose(2, 3)),
    ):
        with pytest.raises(PlanError):
            call(machine, "kv_write", [x, x, mapping], [target, target])
    with pytest.raises(PlanError):
        call(machine, "rope_table", [slots, random(2)], [random(2, 4), random(2, 4)])
