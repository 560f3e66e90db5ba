"""What benchmarks/live_agents.py makes of arms, of a limit of time, and of reports; no server is started."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tokenspeed.benchmarks.live.arms import Arm, manifest_of, plan_of, with_pool
from tokenspeed.benchmarks.live.predicted import Constants, predict
from tokenspeed.benchmarks.live.report import Result, error_table, table
from tokenspeed.benchmarks.live.served import Served
from tokenspeed.benchmarks.live.traffic import Traffic
from tokenspeed.plans.errors import UsageError
from tokenspeed.plans.reader import Plan
from tokenspeed.plans.writer import write_plan
from tokenspeed.runtime.benchmark.replay import ReplayReport
from tokenspeed.runtime.scheduling.policy import AGENTIC, PLAIN
from tokenspeed.runtime.simulation.report import TrafficReport

from ..plans.sample_plan import sample_entries, sample_manifest
from ..runtime.simulation.tiny import crowd, tiny_manifest

CONSTANTS = Constants(0.001, 0.0, 0.003, 0.0)


def traffic(seconds: float) -> Traffic:
    return Traffic("synthetic:sessions=4,seed=1", 5, 12, None, 1.0, 10.0, 1.0, seconds, 512, 0)


def test_arms() -> None:
    assert Arm.parse("plain@0") == Arm("plain", 0) and Arm.parse("agentic").host_kv is None
    assert Arm.parse("plain@0").policy() == PLAIN and Arm.parse("agentic").policy() == AGENTIC
    assert Arm.parse("retention").policy() != AGENTIC and Arm.parse("retention").words == ("--without", "retention")
    assert Arm.parse("agentic@2GiB").label == "agentic, host tier of 2.00 GiB"
    with pytest.raises(UsageError):
        Arm.parse("nothing of the kind")


def test_a_plan_with_another_tier(tmp_path: Path) -> None:
    path, manifest = tmp_path / "a.bin", msgspec.structs.replace(sample_manifest(), performance=tiny_manifest().performance)
    write_plan(path, manifest, sample_entries())
    assert plan_of(Arm.parse("plain"), path, tmp_path) == path
    arm = Arm("agentic", 3 * manifest.kv.bytes_per_block)
    with Plan.open(plan_of(arm, path, tmp_path)) as plan:
        plan.verify_all()
        assert plan.manifest.kv == manifest_of(arm, manifest).kv and plan.manifest.kv.host_blocks == 3
    assert with_pool(manifest, 5 * manifest.kv.block_tokens).kv.blocks == 5


def measured(report: TrafficReport) -> ReplayReport:
    fields = {name: getattr(report, name) for name in report.__struct_fields__}
    return ReplayReport(**fields | {"kind": "measured", "traffic": {"unfinished": 0} | report.traffic}, errors=())


def test_predictions_stop_with_the_time_and_errors_are_told() -> None:
    manifest, trace, arm = tiny_manifest(blocks=40), crowd(12), Arm("plain")
    whole = predict(manifest, arm, traffic(1e6), trace, None, CONSTANTS)
    half = predict(manifest, arm, traffic(whole.makespan_seconds / 2), trace, None, CONSTANTS)
    assert whole.all.turns == trace.turns and "unfinished" not in whole.traffic
    assert 0 < half.all.turns < trace.turns and half.makespan_seconds == whole.makespan_seconds / 2
    assert half.traffic["unfinished"] == trace.turns - half.all.turns
    warmed = predict(manifest, arm, traffic(1e6), trace, crowd(5, seed=1), CONSTANTS)
    assert (warmed.all.turns, warmed.all.input_tokens) == (whole.all.turns, whole.all.input_tokens)
    assert warmed.cache and whole.cache and warmed.cache.queried_tokens == whole.cache.queried_tokens
    assert warmed.makespan_seconds == pytest.approx(whole.makespan_seconds, rel=0.3) and warmed.machine
    assert 0 < warmed.machine.busy_share <= 1
    used = {"prefix_cache_queries": 100.0, "prefix_cache_hits": 25.0, "engine_busy_seconds": whole.makespan_seconds / 4}
    used |= {"engine_host_seconds": 1.0, "iteration_tokens_total_count": 500.0}
    served = Served(measured(whole), used, CONSTANTS, 1.0, 1.0)
    assert (served.hit_rate, served.busy_share, served.host_seconds(0.0)) == (0.25, 0.25, 0.002)
    assert served.host_seconds(1e-6) < 0.002
    results = {"a": Result("a", whole, CONSTANTS, served), "b": Result("b", half, CONSTANTS)}
    assert set(results["a"].errors().values()) == {0.0} and len(table(results).splitlines()) == 2 + 3
    assert error_table(results).splitlines()[-1].startswith("| a | +0% |")
    assert f"{half.all.turns} of {trace.turns}" in table(results)
