"""The roofline of one operation, worked out by hand, on a CPU and on an accelerator."""

from __future__ import annotations

import pytest
from tokenspeed.targets.cost import Cost
from tokenspeed.targets.registry import ACCELERATORS, TARGETS
from tokenspeed.targets.roofline import roofline

H200, AVX2 = ACCELERATORS["h200"], TARGETS["cpu-avx2"]
ONE_ROW = Cost(flops=2 * 8192 * 8192, weight_bytes=2 * 8192 * 8192, activation_bytes=4 * 8192)


def test_one_row_of_a_matrix_is_bound_by_memory() -> None:
    found = roofline(ONE_ROW, H200, ["bf16"], native=True)
    assert found.bandwidth == pytest.approx((2 * 8192 * 8192 + 4 * 8192) / 4.3e12)
    assert found.compute == pytest.approx(2 * 8192 * 8192 / 790e12)
    assert found.bound == "bandwidth" and found.limit == found.bandwidth
    assert found.seconds(0.5) == pytest.approx(2 * found.bandwidth + H200.rates["dispatch.graph"].value)


def test_many_rows_are_bound_by_arithmetic_of_their_type() -> None:
    cost = Cost(flops=2e15, weight_bytes=1e6, activation_bytes=1e6)
    assert roofline(cost, H200, ["bf16"], native=True).bound == "compute"
    assert roofline(cost, H200, ["i8"], native=True).compute == pytest.approx(2e15 / 1978.9e12)
    assert roofline(cost, H200, ["i64", "f32"], native=True).compute == pytest.approx(2e15 / 66.9e12)
    assert roofline(cost, H200, ["i64"], native=True).compute == pytest.approx(2e15 / 66.9e12), "f32 where there is no rate"


def test_small_operations_are_bound_by_their_launch() -> None:
    small = Cost(flops=1e3, weight_bytes=0, activation_bytes=1e4)
    for machine in (H200, AVX2):
        for native in (False, True):
            found = roofline(small, machine, ["f32"], native)
            assert found.bound == "dispatch" and found.dispatch == machine.dispatch(native)
    assert roofline(small, H200, ["f32"], native=False).dispatch == 4.7e-6
