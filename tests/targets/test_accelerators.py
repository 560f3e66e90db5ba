"""Accelerators as data: what each is, and that docs/targets.md has them all."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenspeed.compiler.target_list import target_row
from tokenspeed.targets.accelerator import Accelerator
from tokenspeed.targets.registry import ACCELERATORS, TARGETS, find_target

DOCS = Path(__file__).parents[2] / "docs" / "targets.md"
ARCHES = {
    "a100": "sm_80",
    "h100": "sm_90a",
    "h200": "sm_90a",
    "b200": "sm_100a",
    "mi300x": "gfx942",
    "mi325x": "gfx942",
    "mi355x": "gfx950",
}


def test_names_and_architectures() -> None:
    assert {name: machine.arch for name, machine in ACCELERATORS.items()} == ARCHES


@pytest.mark.parametrize("machine", ACCELERATORS.values(), ids=lambda machine: machine.name)
def test_devices_are_whole(machine: Accelerator) -> None:
    assert machine.memory_bytes >= 80e9 and machine.units > 100 and machine.shared_bytes_per_block >= 64 << 10
    assert machine.warp_size == (32 if machine.vendor == "NVIDIA" else 64)
    assert machine.row_padding == "bucket", "captured graphs have one size"
    assert machine.dispatch(native=True) < machine.dispatch(native=False)
    assert "compute.fp8" in machine.rates or machine.name == "a100"
    assert all(machine.nominal[name].basis == "nominal" for name in machine.nominal)


def test_a_target_of_several_devices_is_that_machine() -> None:
    assert find_target("cpu-avx2:8") == TARGETS["cpu-avx2"]
    assert find_target("h200:8") == find_target("h200")


def test_the_page_has_the_figures_of_the_list() -> None:
    page = DOCS.read_text()
    for name, machine in {**TARGETS, **ACCELERATORS}.items():
        cells = target_row(machine)
        assert f"| `{name}` | {' | '.join(cells[1:])} |\n" in page
