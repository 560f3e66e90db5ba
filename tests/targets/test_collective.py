"""Seconds of collectives: the model of the links, a target's own figures, and sums through each other's memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tokenspeed.targets.collective import LINKS, collective_seconds, how_known
from tokenspeed.targets.rates import MIB, measured, nominal
from tokenspeed.targets.registry import ACCELERATORS

MI300X = ACCELERATORS["mi300x"]
RATES = {
    "latency.all_reduce": measured(20e-6, "s", "a run"),
    "link.all_reduce": measured(400e9, "B/s", "a run"),
    "latency.exchange": measured(3e-6, "s", "another run"),
    "link.exchange": measured(200e9, "B/s", "another run"),
}
SIZES = {"link.devices": nominal(8, "1", "sheet"), "exchange.rows": measured(1 * MIB, "B", "another run")}
MEASURED = replace(MI300X, rates={**MI300X.rates, **RATES}, sizes={**MI300X.sizes, **SIZES})


def test_a_target_without_figures_of_its_own() -> None:
    peer = MI300X.rates["link.peer"].value
    assert collective_seconds("all_reduce", 8e6, 4, MI300X) == pytest.approx(12e-6 + 2 * 3 / 4 * 8e6 / peer)
    assert collective_seconds("all_gather", 8e6, 1, MI300X) == 0.0
    assert how_known("all_reduce", MI300X) == LINKS


def test_measured_figures() -> None:
    assert collective_seconds("all_reduce", 8e6, 2, MEASURED) == pytest.approx(20e-6 + 8e6 / 400e9)
    assert collective_seconds("all_reduce", MIB, 2, MEASURED) == pytest.approx(3e-6 + MIB / 200e9)
    assert collective_seconds("all_reduce", MIB, 4, MEASURED) == pytest.approx(3e-6 + 3 * MIB / 200e9)
    assert collective_seconds("all_reduce", MIB, 16, MEASURED) > 20e-6  # not all of them reach each other
    assert "measured: a run; another run" in how_known("all_reduce", MEASURED)
