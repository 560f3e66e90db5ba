"""Rates that benchmarks/calibration.py and fit_step_costs.py fit: predictions at them are those that were measured."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest
from tokenspeed.benchmarks.fitting import distance, fitted
from tokenspeed.plans.perf_model import StepModel, StepWork, chunk_work
from tokenspeed.plans.schema import Rate

from ..runtime.simulation.tiny import tiny_manifest

PERFORMANCE = tiny_manifest().performance
TRUE = {"compute": 40.0, "bandwidth": 300.0, "dispatch": 2e-3, "attention": 0.5, "kv_bandwidth": 5.0}
WORK = [StepWork(rows, rows * context) for rows in (1, 8) for context in (4, 300)]
WORK += [chunk_work(0, 64), chunk_work(300, 64), StepWork(0).with_chunk(0, 30).with_chunk(200, 20)]


def model(rates: Mapping[str, float]) -> StepModel:
    found = {name: Rate(value=value, unit="", source="test", basis="measured") for name, value in rates.items()}
    return StepModel(msgspec.structs.replace(PERFORMANCE, rates=PERFORMANCE.rates | found))


def test_predictions_at_fitted_rates_are_what_was_measured() -> None:
    measured = [model(TRUE).seconds(work) for work in WORK]

    def far(rates: Mapping[str, float]) -> float:
        return distance((model(rates).seconds(work), seconds) for work, seconds in zip(WORK, measured, strict=True))

    start = dict.fromkeys(TRUE, 10.0) | {"dispatch": 1e-3}
    found = fitted(start, dict.fromkeys(TRUE, (0.0001, 10000.0)), far)
    assert [model(found).seconds(work) for work in WORK] == pytest.approx(measured, rel=0.03)


def test_no_single_measurement_leads() -> None:
    assert distance([(1.0, 1.0), (2.0, 2.0)]) == 0
    assert distance([(1.05, 1.0)]) == pytest.approx(distance([(1.0, 1.05)]))
    far, near = distance([(4.0, 1.0)]), distance([(1.05, 1.0)])
    assert near < far < 200 * near
