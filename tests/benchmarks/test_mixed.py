"""The two classes of benchmarks/mixed_load.py against a live server: all is asked, counted and told; no time is asserted."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from tokenspeed.benchmarks.mixed.load import Load, Urgency, run_load
from tokenspeed.benchmarks.mixed.report import figures, table
from tokenspeed.benchmarks.mixed.simulated import simulate_load
from tokenspeed.runtime.benchmark.http_stream import Server
from tokenspeed.runtime.scheduling.policy import PLAIN

from ..runtime.entrypoint.live_server import MAX_CONTEXT, live_server
from ..runtime.simulation.tiny import tiny_manifest

LOAD = Load(
    sessions=2, context=24, turn_tokens=8, output=4, think_seconds=0.01, requests=6, at_once=2, least=40, most=80, batch_output=3,
    max_context=MAX_CONTEXT, vocabulary=300,
)  # fmt: skip


def test_the_same_in_virtual_time() -> None:
    load = replace(LOAD, think_seconds=0.1, max_context=512)
    urgency = Urgency({"service_tier": "priority", "deadline_ms": 500.0}, {"service_tier": "flex"})
    manifest = tiny_manifest(blocks=128)
    seen, again = (simulate_load(manifest, PLAIN, load, urgency) for _ in range(2))
    found = figures(seen)
    assert (found["errors"], found["batch_requests"], len(seen.alone)) == (0, 6, 2)
    assert [reply.prompt_tokens for reply in seen.alone] == [24 + 4 + 8] * 2
    assert found["interactive_turns"] >= 4 and found["interactive_hit_rate"] > 0.1
    assert 0 < found["speed_of_light_share"] < found["busy_share"] <= 1.1  # a step counts when it is launched
    assert figures(again) == found
    alike = figures(simulate_load(manifest, PLAIN, load, Urgency()))
    assert alike["first_token_seconds"]["p50"] > found["first_token_seconds"]["p50"]


def test_two_classes_on_one_server() -> None:
    urgency = Urgency({"service_tier": "priority", "deadline_ms": 500.0}, {"service_tier": "flex"})
    with live_server() as server:
        server.executor.step_seconds = 0.002
        seen = asyncio.run(run_load(Server.parse(server.url), LOAD, urgency, 60))
        late = asyncio.run(run_load(Server.parse(server.url), replace(LOAD, requests=1000), urgency, 0.2))
    found = figures(seen)
    assert (found["errors"], found["batch_requests"], len(seen.alone)) == (0, 6, 2)
    assert found["interactive_turns"] >= 2 and found["first_token_seconds"]["count"] == found["interactive_turns"]
    assert found["interactive_hit_rate"] > 0.5
    tokens = sum((reply.prompt_tokens or 0) + 3 for reply in seen.batch)
    assert abs(found["batch_tokens_per_second"] * found["seconds"] - tokens) < 1e-6 * tokens
    assert 0 < found["busy_share"] <= 1.01
    assert seen.used["prompt_tokens"] > tokens - 18
    assert "did not end" in figures(late)["first_errors"][-1]
    printed = table({"fcfs": found, "agentic": dict(found)}).splitlines()
    assert len(printed) == 4 and printed[3].count("1.00x") >= 8
