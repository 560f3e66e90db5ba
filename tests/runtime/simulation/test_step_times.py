"""Seconds of a step are the cost model's; copies set a floor; padding is the target's."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace
from tokenspeed.plans.perf_model import StepModel, StepWork, step_seconds
from tokenspeed.runtime.scheduling.step import BlockCopies, GroupedStep, StepBatch, empty_step
from tokenspeed.runtime.simulation.errors import SimulationError
from tokenspeed.runtime.simulation.step_times import StepTimes

from .tiny import in_two_stages, tiny_manifest


def step(positions: list[list[int]], **changes) -> StepBatch:
    """A step of sequences with rows at these positions."""
    flat = np.array([place for rows in positions for place in rows], np.int32)
    contexts = np.array([rows[-1] + 1 for rows in positions], np.int32)
    return replace(empty_step(0), token_ids=np.zeros_like(flat), positions=flat, context_lengths=contexts, **changes)


def copies(count: int) -> tuple[BlockCopies, ...]:
    places = np.arange(count, dtype=np.int32)
    return (BlockCopies(places, places),)


def test_a_step_takes_what_the_cost_model_says() -> None:
    manifest = tiny_manifest()
    batch = step([[40], [7], [3, 4, 5, 6]], decode_rows=2)
    found = StepTimes(manifest)(batch)
    assert found.stages == (step_seconds(manifest.performance, StepWork(6, 41 + 8, 4 + 5 + 6 + 7, 7, 7)),)
    assert found.roofline == pytest.approx(found.stages[0] - 10 * 1e-3)


def test_padded_targets_compute_whole_buckets() -> None:
    manifest = tiny_manifest()
    target = msgspec.structs.replace(manifest.target, row_padding="bucket")
    padded = StepTimes(msgspec.structs.replace(manifest, target=target))(step([[40], [7]], decode_rows=2))
    assert padded.stages == (StepModel(manifest.performance).seconds(StepWork(2, 49), 64),)
    assert padded.roofline == StepTimes(manifest)(step([[40], [7]], decode_rows=2)).roofline, "padding is no work"


def test_groups_wait_for_the_slowest_and_stages_follow_each_other() -> None:
    manifest = tiny_manifest()
    small, large = step([[40]]), step([[90], [5, 6, 7]])
    times = StepTimes(manifest)
    together = times(GroupedStep(0, (small, None, large), 4))
    assert together.stages == times(large).stages
    assert together.roofline == pytest.approx((times(small).roofline + times(large).roofline) / 3)
    assert StepTimes(in_two_stages(manifest))(small).stages == times(small).stages * 2


def test_copies_set_a_floor_each_way_apart() -> None:
    manifest = tiny_manifest()
    times = StepTimes(manifest)
    alone = times(step([[40]])).stages[0]
    assert times(step([[40]], loads=copies(5))).stages == (alone,), "hidden behind the step"
    reading = step([[40]], loads=copies(5), block_tables=np.array([[7, 3]], np.int32))
    assert times(reading).stages == (pytest.approx(alone + 0.05),), "its rows read what comes"
    assert times(step([[40]], loads=copies(300), saves=copies(200))).stages == (3.0,)
    assert times(replace(empty_step(0), saves=copies(200))).stages == (2.0,), "copies without rows"


def test_copies_need_a_rate() -> None:
    manifest = tiny_manifest()
    rates = {name: rate for name, rate in manifest.performance.rates.items() if name != "host_link"}
    performance = msgspec.structs.replace(manifest.performance, rates=rates)
    with pytest.raises(SimulationError, match="host link"):
        StepTimes(msgspec.structs.replace(manifest, performance=performance))(step([[40]], loads=copies(1)))
