"""The check of a target's data: ours passes, and each thing that can be wrong is named with what was expected."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tokenspeed.plans.errors import UsageError
from tokenspeed.targets.check import check_target, problems
from tokenspeed.targets.machine import Machine
from tokenspeed.targets.rates import measured, nominal
from tokenspeed.targets.registry import ACCELERATORS, TARGETS

H200, AVX2 = ACCELERATORS["h200"], TARGETS["cpu-avx2"]


@pytest.mark.parametrize("machine", [*TARGETS.values(), *ACCELERATORS.values()], ids=lambda machine: machine.name)
def test_the_targets_built_in_are_sound(machine: Machine) -> None:
    check_target(machine)


def with_rate(name: str, value: float, unit: str, source: str = "a sheet") -> dict[str, Any]:
    return {"rates": {**H200.rates, name: nominal(value, unit, source)}}


def with_size(name: str, value: float, unit: str = "B") -> dict[str, Any]:
    return {"sizes": {**H200.sizes, name: nominal(value, unit, "a sheet")}}


WRONG: tuple[tuple[dict[str, Any], str], ...] = (
    ({"name": "H 200"}, "name: 'H 200', expected lower-case"),
    ({"vendor": ""}, "vendor: empty"),
    ({"description": ""}, "description: empty"),
    ({"features": ()}, "features: none"),
    ({"features": ("sm_80",)}, "expected sm_90a among them"),
    ({"arch": "gfx942", "features": ("gfx942",)}, "arch: 'gfx942' is no cuda architecture"),
    ({"row_padding": "some"}, "row_padding: 'some'"),
    ({"state": "fine"}, "state: 'fine', expected one of ran on hardware"),
    ({"kernels": ()}, "of a target without kernels"),
    ({"overhead_bytes": 0}, "overhead_bytes: 0"),
    ({"rates": {}}, "rates: link.peer is missing"),
    ({"sizes": {}}, "sizes: shared.block is missing"),
    (with_rate("compute.bf16", 790, "TFLOP/s"), "compute.bf16 is in TFLOP/s, expected FLOP/s"),
    (with_rate("compute.bf16", 790, "FLOP/s"), "compute.bf16 is 790 FLOP/s, expected 1e+09 to 1e+18: is it in another unit?"),
    (with_rate("compute.int8", 1e15, "FLOP/s"), "compute.int8 is in FLOP/s, expected OP/s"),
    (with_rate("bandwidth", -1.0, "B/s"), "bandwidth is -1.0, expected a positive number"),
    (with_rate("bandwidth", float("nan"), "B/s"), "bandwidth is nan"),
    (with_rate("bandwidth", 4e12, "B/s", " "), "bandwidth has no source"),
    (with_rate("dispatch", 4.7, "s"), "dispatch is 4.7 s"),
    (with_rate("compute.f64", 1e13, "FLOP/s"), "compute.f64 is not known"),
    (with_rate("compute.bf16", 9e14, "FLOP/s"), "nominal: compute.bf16 stands for no measured rate"),
    ({"rates": {**H200.rates, "bandwidth": measured(5e12, "B/s", "a copy")}}, "above the vendor's own 4.8e+12 B/s"),
    (with_size("memory", 141), "memory is 141 B, expected at least 1e9"),
    (with_size("units", 131.5, "1"), "units is 131.5, expected a whole number"),
    (with_size("warp", 33, "1"), "warp is 33 threads, expected 32 or 64"),
    (with_size("shared.block", 1 << 20), "shared.block is more than shared.unit"),
    (with_size("cache.l3", 1 << 20), "sizes: cache.l3 is not known"),
)


@pytest.mark.parametrize(("change", "said"), WRONG, ids=[said for _, said in WRONG])
def test_what_is_wrong_is_named(change: dict[str, Any], said: str) -> None:
    machine = replace(H200, **change)
    assert any(said in found for found in problems(machine)), list(problems(machine))
    with pytest.raises(UsageError, match="the data of target") as refused:
        check_target(machine)
    assert said in refused.value.got and "docs/targets.md" in refused.value.expected


def test_kernels_are_checked() -> None:
    first = AVX2.kernels[0]
    wrong = (
        replace(first, name="slow", efficiency=lambda rows: 0.5 if rows == 1 else 1.5),
        replace(first, name="silent", receipt=""),
        replace(first, name="lost", operation="linear"),
        first,
    )
    found = "; ".join(problems(replace(AVX2, kernels=(*AVX2.kernels, *wrong))))
    for said in (
        "'slow' of ts.linear: efficiency 1.5 at 2 rows",
        "'silent' of ts.linear: needs",
        "not an operation",
        "registered twice",
    ):
        assert said in found
