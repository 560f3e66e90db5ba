"""Statistics, phase lines and rooflines: the arithmetic behind tokenspeed-bench."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenspeed.plans.schema import CostRow, Performance, Rate
from tokenspeed.runtime.benchmark.environment import environment, usable_cores
from tokenspeed.runtime.benchmark.machine_rates import MachineRates, better
from tokenspeed.runtime.benchmark.roofline import bound, decode_work, predicted_seconds, prompt_work
from tokenspeed.runtime.benchmark.startup import drop_from_page_cache, parse_phases
from tokenspeed.runtime.benchmark.statistics import percentile, ratio, summarise

samples = st.lists(st.floats(0, 1e6), min_size=1, max_size=50)


@given(samples, st.floats(0, 1))
def test_percentiles_are_those_of_numpy(values: list[float], share: float) -> None:
    expected = float(np.quantile(values, share))
    assert percentile(sorted(values), share) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(samples)
def test_summaries_are_in_order(values: list[float]) -> None:
    summary = summarise(values)
    assert summary.count == len(values)
    assert summary.minimum <= summary.p50 <= summary.p90 <= summary.p99 <= summary.maximum
    assert (summary.minimum, summary.maximum) == (min(values), max(values))


def test_an_empty_sample() -> None:
    assert summarise([]).count == 0 and ratio(1.0, 0.0) == 0.0
    with pytest.raises(ValueError, match="sample"):
        percentile([], 0.5)
    with pytest.raises(ValueError, match="share"):
        percentile([1.0], 1.5)


def performance() -> Performance:
    rates = {
        name: Rate(value=value, unit=unit, source="test", basis="nominal")
        for name, value, unit in (("compute", 1e9, "FLOP/s"), ("bandwidth", 1e8, "B/s"), ("dispatch", 1e-4, "s"))
    }
    row = CostRow(rows=1, flops=1e6, weight_bytes=1e6, activation_bytes=0.0, instructions=10)
    return Performance(
        rates=rates, step_costs=(row,), attention_flops_per_token_pair=10.0, kv_bytes_per_token=100.0, predictions={}
    )


def test_shares_of_the_roofline() -> None:
    work = decode_work(1, 1000)
    rates = MachineRates("f32", "onednn", read_bandwidth=2e8, gemm_rate=2e9)
    limit = bound(performance(), work, rates, seconds=0.011)
    assert limit.read_bytes == pytest.approx(1e6 + 1e5)
    assert limit.flops == pytest.approx(1e6 + 1e4)
    assert limit.bandwidth_share == pytest.approx(0.5)
    assert limit.speed_of_light == limit.bandwidth_share > limit.compute_share
    # by the plan's own rates: 11 ms of reading and 10 launches of 0.1 ms
    assert predicted_seconds(performance(), work) == pytest.approx(0.012)


def test_a_prompt_is_worked_off_in_chunks() -> None:
    work = prompt_work(1200, 512)
    assert [(step.rows, step.context_tokens) for step in work] == [(512, 512), (512, 1024), (176, 1200)]
    assert sum(step.token_pairs for step in work) == 1200 * 1201 // 2


def test_the_better_of_two_looks_at_a_machine() -> None:
    first, second = MachineRates("f32", "onednn", 3.0, 5.0), MachineRates("f32", "onednn", 4.0, 2.0)
    assert better(first, second) == MachineRates("f32", "onednn", 4.0, 5.0)


def test_start_up_lines_are_read() -> None:
    line = "start-up 1.50 s: imports 0.20, plan checks 0.01; engine: engine start 0.30, imports 0.90, weights 0.25"
    assert parse_phases(f"5 prompt tokens\n{line}\n") == {
        "imports": 0.20,
        "plan checks": 0.01,
        "engine: engine start": 0.30,
        "engine: imports": 0.90,
        "engine: weights": 0.25,
    }
    assert parse_phases("nothing of the kind") == {}


def test_the_environment_and_the_page_cache(tmp_path: Path) -> None:
    found = environment(threads=3)
    assert found.threads == 3 and found.cores == usable_cores() >= 1 and found.memory_bytes > 0 and found.cpu
    (tmp_path / "weights").write_bytes(b"x" * 8192)
    assert isinstance(drop_from_page_cache(tmp_path / "weights"), bool)
    assert (tmp_path / "weights").read_bytes() == b"x" * 8192
