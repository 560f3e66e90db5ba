"""Whole simulations: predicted times, conservation of tokens and of time, what was cached, and the same again."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from tokenspeed.plans.errors import UsageError
from tokenspeed.plans.perf_model import StepWork, chunk_work, prefill_chunks, step_seconds
from tokenspeed.plans.schema import Manifest
from tokenspeed.runtime.scheduling.building import scheduler_of
from tokenspeed.runtime.scheduling.policy import AGENTIC, PLAIN
from tokenspeed.runtime.scheduling.prefix import chain_seed
from tokenspeed.runtime.simulation.clients import Agents
from tokenspeed.runtime.simulation.conversations import Conversations
from tokenspeed.runtime.simulation.machine import VirtualMachine
from tokenspeed.runtime.simulation.simulate import Scenario, play, report_of, simulate, with_host_tier, with_rates
from tokenspeed.runtime.simulation.step_times import StepTimes
from tokenspeed.runtime.simulation.virtual_engine import EngineSettings, VirtualEngine
from tokenspeed.runtime.traffic.session import Trace

from .tiny import crowd, in_two_stages, session, tiny_manifest


def prefill_seconds(manifest: Manifest, tokens: int, cached: int = 0) -> float:
    performance = manifest.performance
    chunks = prefill_chunks(tokens, cached, manifest.schedule.prefill_chunk)
    return sum(step_seconds(performance, chunk_work(at, rows)) for at, rows in chunks)


def decode_seconds(manifest: Manifest, context: int) -> float:
    return step_seconds(manifest.performance, StepWork(1, context))


@pytest.mark.parametrize("policy", [PLAIN, AGENTIC])
@pytest.mark.parametrize("overlap", [False, True])
def test_one_session_alone_takes_exactly_what_the_cost_model_says(policy, overlap: bool) -> None:
    manifest = tiny_manifest()
    trace = Trace("one", (session("a", [(150, 5, 0.0), (30, 3, 7.0)]),))
    scenario = Scenario(1, policy=policy, engine=EngineSettings(overlap=overlap))
    first, second = play(manifest, scenario.clients(trace.sessions), scenario).records
    assert first.first_token_seconds == pytest.approx(prefill_seconds(manifest, 150), rel=1e-12)
    gaps = [later - earlier for earlier, later in pairwise(first.token_seconds)]
    assert gaps == pytest.approx([decode_seconds(manifest, 151 + number) for number in range(4)], rel=1e-9)
    assert second.arrival_seconds == pytest.approx(first.token_seconds[-1] + 7.0)
    assert second.cached_tokens == 128, "154 tokens of the turn before are written, in full units of 64"
    assert second.first_token_seconds == pytest.approx(prefill_seconds(manifest, 185, 128), rel=1e-9)


def test_host_time_is_hidden_behind_steps_only_with_overlap() -> None:
    manifest = tiny_manifest()
    trace = Trace("one", (session("a", [(10, 20, 0.0)]),))

    def makespan(host: float, overlap: bool) -> float:
        scenario = Scenario(1, engine=EngineSettings(host_seconds=host, overlap=overlap))
        return simulate(manifest, trace, scenario).makespan_seconds

    alone = makespan(0.0, True)
    assert makespan(0.05, False) == pytest.approx(alone + 20 * 0.05)
    assert makespan(0.05, True) == pytest.approx(alone + 0.05), "steps take longer than the host"
    assert makespan(0.5, True) == pytest.approx(20 * 0.5 + decode_seconds(manifest, 29), abs=0.1), "the host is the limit"


def test_requests_take_their_time_to_the_queue_and_tokens_theirs_on_the_host() -> None:
    """Also where the sum of two times less one of them is less than the other."""
    manifest, arrival, fixed, each = tiny_manifest(), 0.1, 0.7, 0.001
    trace = Trace("one", (session("a", [(150, 5, 0.0)], arrival), session("b", [(20, 1, 0.0)], 50.0)))

    def first(**settings: Any) -> tuple[float, float]:
        scenario = Scenario(None, engine=EngineSettings(**settings))
        found = play(manifest, scenario.clients(trace.sessions), scenario).records[0]
        return found.first_token_seconds, found.turn_seconds

    alone = first()
    assert alone[0] == pytest.approx(prefill_seconds(manifest, 150))
    assert first(request_seconds=fixed, request_token_seconds=each)[0] == pytest.approx(alone[0] + fixed + 150 * each)
    found = first(host_token_seconds=each)
    assert found[0] == pytest.approx(alone[0] + 150 * each), "looked up before its first step"
    assert found[1] == pytest.approx(alone[1] + 150 * each + (150 + 4) * each), "and given back before its last token is told"


@pytest.mark.parametrize("policy", [PLAIN, AGENTIC])
@pytest.mark.parametrize("blocks", [40, 400])
def test_every_token_is_accounted_for(policy, blocks: int) -> None:
    """With a pool that forces evictions and preemptions, and with a large one."""
    manifest, trace = tiny_manifest(blocks), crowd(12)
    scenario = Scenario(5, policy=policy)
    run = play(manifest, scenario.clients(trace.sessions), scenario)
    report = report_of(manifest, trace, scenario, run)
    turns = [turn for item in trace.sessions for turn in item.turns]
    assert report.all.turns == len(turns) and not report.all.refused and not report.all.failed
    assert report.all.output_tokens == sum(turn.output_tokens for turn in turns) == run.stats.generation_tokens
    assert report.all.input_tokens == sum(turn.prompt_tokens for turn in turns) == run.stats.prefix_queries
    assert report.all.cached_tokens == run.stats.prefix_hits and 0 < report.all.hit_rate < 1
    assert sum(item.turns for item in report.tenants) == sum(item.turns for item in report.priorities) == len(turns)
    assert all(earlier < later for record in run.records for earlier, later in pairwise(record.token_seconds))
    assert report.machine is not None
    assert 0 < report.machine.speed_of_light_share < report.machine.busy_share <= 1


def test_a_host_tier_finds_what_a_small_pool_forgot() -> None:
    small = tiny_manifest(blocks=40)
    tiered = with_host_tier(small, 400 * small.kv.bytes_per_block)
    without, found = (simulate(manifest, crowd(12), Scenario(5, policy=PLAIN)) for manifest in (small, tiered))
    assert without.cache is not None and found.cache is not None
    assert found.cache.host_blocks == 400 and without.cache.reloaded_tokens == 0
    assert found.cache.hit_rate > without.cache.hit_rate and found.cache.host_hit_rate > 0
    assert found.cache.offloaded_tokens >= found.cache.reloaded_tokens > 0
    assert found.makespan_seconds < without.makespan_seconds
    with pytest.raises(UsageError, match="not one KV block"):
        with_host_tier(small, 10)


def test_pauses_of_the_traffic_save_what_steps_had_no_time_for() -> None:
    small = tiny_manifest(blocks=40)
    tiered = with_host_tier(small, 40 * small.kv.bytes_per_block)
    trace = Trace("one", (session("a", [(150, 1, 0.0), (30, 1, 5.0)]),))
    scenario = Scenario(1, policy=PLAIN)
    clients, ends = scenario.clients(trace.sessions), list[float]()
    machine = VirtualMachine(StepTimes(tiered))
    conversations = Conversations(partial(chain_seed, tiered.kv.compatibility), tiered.kv.identity_tokens)
    engine = VirtualEngine(scheduler_of(tiered, PLAIN), machine, clients, conversations, scenario.engine, ends.append)
    run = engine.run()
    assert run.stats.offloaded_tokens == 128
    first, second = run.records
    assert second.first_token_seconds == pytest.approx(prefill_seconds(tiered, 181, 128), rel=1e-9), "it waits for no copy"
    assert any(first.token_seconds[-1] < end < second.arrival_seconds for end in ends)


def test_rates_replace_the_plans() -> None:
    trace = Trace("one", (session("a", [(10, 8, 0.0)]),))
    slow, fast = (
        simulate(with_rates(tiny_manifest(), {"bandwidth": value}, "rates.json"), trace, Scenario(1)) for value in (1e3, 1e6)
    )
    assert fast.makespan_seconds < slow.makespan_seconds
    with pytest.raises(UsageError, match="not usable"):
        with_rates(tiny_manifest(), {"speed": 1.0}, "rates.json")
    with pytest.raises(UsageError, match="nan"):
        with_rates(tiny_manifest(), {"compute": float("nan")}, "rates.json")


def test_littles_law() -> None:
    """Requests in the system on average are arrivals per second times how long each is there."""
    manifest, trace = tiny_manifest(), crowd(40, seed=3, apart=0.4)
    clients = Scenario(None).clients(trace.sessions)
    scheduler = scheduler_of(manifest)
    conversations = Conversations(lambda salt: chain_seed(manifest.kv.compatibility, salt), manifest.kv.identity_tokens)
    seen: list[tuple[float, int]] = []
    machine = VirtualMachine(StepTimes(manifest))

    def watch(now: float) -> None:
        stats = scheduler.stats()
        scheduler.check_integrity()
        seen.append((now, stats.running + stats.waiting))

    run = VirtualEngine(scheduler, machine, clients, conversations, EngineSettings(), watch).run()
    there = sum(before * (now - then) for (then, before), (now, _) in pairwise(seen))
    assert there == pytest.approx(sum(record.turn_seconds for record in run.records), rel=0.05)


def test_the_same_traffic_gives_the_same_report() -> None:
    def once() -> bytes:
        return msgspec.json.encode(simulate(tiny_manifest(60), crowd(8, seed=5), Scenario(4)))

    assert once() == once()


def test_groups_share_the_traffic() -> None:
    one, two = (simulate(tiny_manifest(groups=groups), crowd(12, seed=2), Scenario(8)) for groups in (1, 2))
    assert two.all.output_tokens == one.all.output_tokens and two.makespan_seconds < one.makespan_seconds
    assert two.machine is not None and two.machine.accelerators == 2


def test_a_pipeline_is_slower_for_one_and_faster_for_many() -> None:
    whole = tiny_manifest()
    staged = in_two_stages(whole)
    alone = Trace("one", (session("a", [(10, 8, 0.0)]),))
    times = [simulate(manifest, alone, Scenario(1)).makespan_seconds for manifest in (whole, staged)]
    assert times[1] == pytest.approx(2 * times[0])
    many = crowd(12, seed=2)
    rates = [simulate(manifest, many, Scenario(4)).makespan_seconds for manifest in (whole, staged)]
    assert rates[1] < 1.8 * rates[0], "two steps are in flight"


def test_refused_turns_are_counted_and_the_session_goes_on() -> None:
    manifest = tiny_manifest(blocks=8)
    trace = Trace("one", (session("a", [(200, 3, 0.0), (10, 2, 1.0)]), session("b", [(20, 2, 0.0)])))
    report = simulate(manifest, trace, Scenario(1))
    assert (report.all.turns, report.all.refused, report.all.ttft_seconds.count) == (3, 2, 1)


def test_agents_take_one_session_after_the_other() -> None:
    sessions = [session(f"s{number}", [(5, 1, 0.0), (5, 1, 10.0)]) for number in range(3)]
    agents = Agents(sessions, 2, time_scale=0.5)
    assert [arrival.session.session_id for arrival in agents.take(0.0)] == ["s0", "s1"]
    agents.ended(sessions[0], 0, 2.0)
    assert agents.next_seconds == 7.0
    agents.ended(sessions[1], 1, 3.0)
    assert [(item.seconds, item.session.session_id, item.turn) for item in agents.take(9.0)] == [(3.0, "s2", 0), (7.0, "s0", 1)]


def test_time_scale_stretches_an_open_loop() -> None:
    trace = crowd(6, seed=4, apart=50.0)
    spans = [simulate(tiny_manifest(), trace, Scenario(None, time_scale=scale)).makespan_seconds for scale in (1.0, 2.0)]
    assert spans[1] == pytest.approx(2 * spans[0], rel=0.1)


def test_hints_and_closing_reach_the_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenspeed.runtime.scheduling.scheduler import Scheduler

    told: list[tuple[str, str]] = []
    monkeypatch.setattr(Scheduler, "end_turn", lambda self, name, end: told.append((name, end)))
    monkeypatch.setattr(Scheduler, "close_session", lambda self, name: told.append((name, "closed")))
    trace = Trace("one", (session("a", [(10, 2, 0.0), (10, 2, 1.0)]),))
    settings = EngineSettings(closing=True)
    simulate(tiny_manifest(), trace, Scenario(1, engine=settings))
    assert told == [("a", "tool_call"), ("a", "end_of_turn"), ("a", "closed")]
    told.clear()
    simulate(tiny_manifest(), trace, Scenario(1, engine=replace(settings, hints=False, closing=False)))
    assert told == []
