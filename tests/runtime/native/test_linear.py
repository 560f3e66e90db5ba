"""The native linear kernel against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenspeed.plans.errors import PlanError
from tokenspeed.runtime.native.records import PackedWeight

from ..functions.calling import poisoned, random
from .calling import MACHINES, call, empty_packed, on_every_machine
from .panels import GGML, packed, quantised

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}


def run(
    machine: str,
    x: torch.Tensor,
    weight: PackedWeight,
    bias: torch.Tensor | None = None,
    threads: int = 2,
) -> torch.Tensor:
    """The product, written into a window of a poisoned matrix whose rest must stay as it was."""
    rows, columns = len(x), weight.shape[0]
    frame = poisoned(rows + 2, columns + 9, dtype=x.dtype)
    out = frame[1:-1, 4:-5]
    call(machine, "linear", [x, weight] + ([bias] if bias is not None else []), [out], threads)
    outside = torch.ones(frame.shape, dtype=torch.bool)
    outside[1:-1, 4:-5] = False
    assert frame[outside].isnan().all()
    return out


def bound(x: torch.Tensor, weight: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """How far a sum of float32 products, one after the other, may lie from the exact one, and its rounding to x's type."""
    magnitudes = x.double().abs() @ weight.double().abs().T
    return (x.shape[1] + 2) * 2.0**-24 * magnitudes + ROUNDING[x.dtype] * exact.abs() + 1e-30


@settings(max_examples=60, deadline=None)
@given(
    machine=st.sampled_from([*MACHINES]),
    activation=st.sampled_from([*DTYPES]),
    dtype=st.sampled_from([*DTYPES]),
    rows=st.integers(1, 40),
    features=st.integers(1, 300),
    columns=st.integers(1, 80),
    gap=st.integers(0, 5),
    with_bias=st.booleans(),
)
def test_float_weights(
    machine: str, activation: str, dtype: str, rows: int, features: int, columns: int, gap: int, with_bias: bool
) -> None:
    x = random(rows, features + gap, dtype=DTYPES[activation])[:, gap:]
    weight = random(columns, features, seed=1, dtype=DTYPES[dtype])
    bias = random(columns, seed=2, dtype=DTYPES[activation]) if with_bias else None
    found = run(machine, x, packed(machine, weight, dtype), bias)
    exact = x.double() @ weight.double().T
    if bias is not None:
        exact = exact + bias.double()
    assert ((found.double() - exact).abs() <= bound(x, weight, exact)).all()


def quantisation_bound(x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """How far the products may lie off because each group of 32 activations is rounded to multiples of its largest / 127."""
    rows, features = x.shape
    largest = x.double().abs().reshape(rows, -1, 32).amax(-1)
    weights = values.double().abs().reshape(len(values), features // 32, 32).sum(-1)
    return largest / 127 * 0.5001 @ weights.T


@settings(max_examples=60, deadline=None)
@given(
    machine=st.sampled_from([*MACHINES]),
    activation=st.sampled_from([*DTYPES]),
    dtype=st.sampled_from([*GGML]),
    rows=st.integers(1, 40),
    groups=st.integers(1, 9),
    columns=st.integers(1, 80),
    gap=st.integers(0, 5),
    with_bias=st.booleans(),
)
def test_quantised_weights(
    machine: str, activation: str, dtype: str, rows: int, groups: int, columns: int, gap: int, with_bias: bool
) -> None:
    x = random(rows, groups * 32 + gap, dtype=DTYPES[activation])[:, gap:]
    x = x * torch.logspace(-3, 3, rows)[:, None].to(x.dtype)
    weight = random(columns, groups * 32, seed=1)
    values = quantised(weight, dtype)[1]
    bias = random(columns, seed=2, dtype=DTYPES[activation]) if with_bias else None
    found = run(machine, x, packed(machine, weight, dtype), bias)
    exact = x.double() @ values.double().T
    if bias is not None:
        exact = exact + bias.double()
    assert ((found.double() - exact).abs() <= quantisation_bound(x, values) + bound(x, values, exact)).all()


@on_every_machine
@pytest.mark.parametrize("dtype", GGML)
def test_quantised_weights_multiply_whole_numbers_exactly(machine: str, dtype: str) -> None:
    """Activations that are whole and reach 127 in every group lose nothing; the largest weights of either sign are among them."""
    x = torch.randint(-127, 128, (14, 96), generator=torch.Generator().manual_seed(0)).float()
    x[:, ::32] = 127
    x[::2, 1::32] = -127
    weight = random(40, 96)
    weight[0], weight[1, ::2], weight[2, 1::2] = 1, -1, -1
    values = quantised(weight, dtype)[1]
    exact = x.double() @ values.double().T
    assert ((run(machine, x, packed(machine, weight, dtype)).double() - exact).abs() <= bound(x, values, exact)).all()


@pytest.mark.parametrize("dtype", GGML)
def test_every_machine_gives_the_same_bits(dtype: str) -> None:
    x, weight = random(17, 128), random(70, 128, seed=1)
    first, *others = [run(machine, x, packed(machine, weight, dtype)) for machine in MACHINES]
    assert all(torch.equal(first, other) for other in others)


@on_every_machine
@pytest.mark.parametrize("dtype", GGML)
def test_what_is_not_a_number_stays_visible(machine: str, dtype: str) -> None:
    x, weight = random(3, 64), packed(machine, random(32, 64), dtype)
    x[1, 40] = float("nan")
    found = run(machine, x, weight)
    assert found[1].isnan().all() and found[::2].isfinite().all()


@on_every_machine
@pytest.mark.parametrize("dtype", DTYPES)
def test_many_rows(machine: str, dtype: str) -> None:
    """More rows than a task takes, more of K than the cache holds at a time."""
    x, weight = random(301, 700, dtype=DTYPES[dtype]), random(70, 700, seed=1, dtype=DTYPES[dtype])
    found, exact = run(machine, x, packed(machine, weight, dtype)), x.double() @ weight.double().T
    assert ((found.double() - exact).abs() <= bound(x, weight, exact)).all()


@on_every_machine
@pytest.mark.parametrize("rows", [1, 16, 17, 33, 48])
def test_what_fills_no_tile(machine: str, rows: int) -> None:
    """Rows past a multiple of 16, features past a multiple of 32, an odd number of them."""
    for features in (1, 31, 33, 64, 65, 546):
        x, weight = random(rows, features + 3, dtype=torch.bfloat16)[:, 1:-2], random(40, features, seed=1, dtype=torch.bfloat16)
        found, exact = run(machine, x, packed(machine, weight, "bf16")), x.double() @ weight.double().T
        assert ((found.double() - exact).abs() <= bound(x, weight, exact)).all()


@on_every_machine
@pytest.mark.parametrize("dtype", GGML)
def test_many_rows_of_quantised_weights(machine: str, dtype: str) -> None:
    """Within what few rows may lose; and a row's bits are those of any other number of many rows."""
    x, weight = random(75, 544, dtype=torch.bfloat16), random(70, 544, seed=1)
    values, blocks = quantised(weight, dtype)[1], packed(machine, weight, dtype)
    found, exact = run(machine, x, blocks), x.double() @ values.double().T
    assert ((found.double() - exact).abs() <= quantisation_bound(x, values) + bound(x, values, exact)).all()
    assert all(torch.equal(run(machine, x[:count], blocks), found[:count]) for count in (32, 33, 49))


@on_every_machine
@pytest.mark.parametrize("dtype", [*DTYPES, *GGML])
@pytest.mark.parametrize("rows", [1, 5, 100])
def test_the_same_bits_from_any_number_of_threads(machine: str, dtype: str, rows: int) -> None:
    x, weight = random(rows, 320, dtype=DTYPES.get(dtype, torch.bfloat16)), packed(machine, random(200, 320, seed=1), dtype)
    first = run(machine, x, weight, threads=1)
    assert all(torch.equal(first, run(machine, x, weight, threads=threads)) for threads in (2, 3))


@on_every_machine
@pytest.mark.parametrize("dtype", [*DTYPES, *GGML])
def test_a_row_does_not_depend_on_the_others(machine: str, dtype: str) -> None:
    x, weight = random(31, 320, dtype=DTYPES.get(dtype, torch.float32)), packed(machine, random(40, 320, seed=1), dtype)
    whole = run(machine, x, weight)
    for count in (1, 2, 3, 4, 5, 7, 9, 11, 13):
        assert torch.equal(run(machine, x[:count], weight), whole[:count])


@on_every_machine
def test_no_rows(machine: str) -> None:
    assert run(machine, random(0, 32), packed(machine, random(32, 32), "f32")).shape == (0, 32)


def test_refuses_what_it_cannot_multiply() -> None:
    machine = next(iter(MACHINES))
    x, weight, out = random(3, 32), packed(machine, random(40, 32), "f32"), poisoned(3, 40)
    for wrong in (
        ([x], [out]),
        ([x, random(40, 32)], [out]),
        ([x, weight], [poisoned(3, 40, dtype=torch.bfloat16)]),
        ([x, weight], [poisoned(3, 41)]),
        ([x, weight], [poisoned(40, 3).T]),
        ([random(32, 3).T, weight], [out]),
        ([random(3, 31), weight], [out]),
        ([x, weight, random(41)], [out]),
        ([x, weight, random(40).to(torch.int32)], [out]),
        ([x, empty_packed((40, 32), "f16", 4096)], [out]),
        ([random(3, 0), empty_packed((40, 0), "f32", 64)], [out]),
        ([random(3, 48), empty_packed((40, 48), "q8_0", 8192)], [out]),
    ):
        with pytest.raises(PlanError):
            call(machine, "linear", *wrong)
