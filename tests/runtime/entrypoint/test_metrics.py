"""Dashboards find the metrics under the names they know, and the numbers are those of the requests made."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from .live_server import NAME, LiveServer, live_server

GAUGES = {
    "num_requests_running",
    "num_requests_waiting",
    "num_requests_parked",
    "kv_cache_usage_perc",
    "host_kv_cache_usage_perc",
}
COUNTERS = {
    "prompt_tokens", "generation_tokens", "request_success", "num_preemptions", "prefix_cache_queries", "prefix_cache_hits",
    "prefix_cache_host_hits", "offloaded_tokens", "reloaded_tokens", "recomputed_tokens", "engine_busy_seconds",
    "engine_host_seconds", "engine_roofline_seconds",
}  # fmt: skip
HISTOGRAMS = {
    "time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds", "request_queue_time_seconds",
    "request_prefill_time_seconds", "request_decode_time_seconds", "request_prompt_tokens", "request_generation_tokens",
    "iteration_tokens_total",
}  # fmt: skip


def scraped(server: LiveServer) -> dict[str, float]:
    """Gauges and totals by name."""
    families = text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text)
    samples = [sample for family in families for sample in family.samples if "le" not in sample.labels]
    return {sample.name.removeprefix("tokenspeed:").removesuffix("_total"): sample.value for sample in samples}


@pytest.mark.parametrize("overlap", [True, False])
def test_prompts_that_come_back_from_the_host_count_as_cached(overlap: bool) -> None:
    prompts = [[token] * 80 for token in (5, 6, 7)]
    with (
        live_server(kv_blocks=32, host_blocks=256, overlap=overlap) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0, timeout=20) as client,
    ):
        cached = []
        for prompt in [*prompts, *prompts, prompts[-1]]:
            usage = client.completions.create(model=NAME, prompt=prompt, max_tokens=12).usage
            assert usage is not None and usage.prompt_tokens_details is not None
            cached.append(usage.prompt_tokens_details.cached_tokens)
        values = scraped(server)
        assert any(batch.loads for batch in server.executor.batches)
    assert cached == [0, 0, 0, 72, 72, 72, 72]
    assert values["prefix_cache_hits"] == sum(cached) and 72 * 2 <= values["prefix_cache_host_hits"] <= 72 * 3
    assert values["reloaded_tokens"] == values["prefix_cache_host_hits"]
    assert values["offloaded_tokens"] >= 80 * 2 and 0 < values["host_kv_cache_usage_perc"] <= 1


def test_sessions_that_do_not_fit_together_take_turns() -> None:
    """Five conversations of some 100 tokens each, of which the pool holds two; nobody waits for ever, and nothing is left."""
    parked: list[int] = []

    def converse(client: httpx.Client, number: int) -> int:
        prompt, session = [number + 5] * 80, {"session_id": f"{number}", "max_tokens": 8}
        for _ in range(3):
            answer = client.post("/v1/completions", json={"prompt": prompt} | session)
            assert answer.status_code == 200, answer.text
            prompt = [*prompt, *[number + 5] * 8]
        return len(prompt)

    with (
        live_server(kv_blocks=64) as server,
        httpx.Client(base_url=server.url, timeout=20) as client,
        ThreadPoolExecutor(5) as threads,
    ):
        server.in_loop(lambda: server.client.on_news(lambda news: parked.append(news.stats.parked)))
        server.executor.gate.clear()
        asked = [threads.submit(converse, client, number) for number in range(5)]
        while server.in_loop(lambda: server.client.open_sequences) < 5:
            time.sleep(0.005)
        server.executor.gate.set()
        assert [item.result() for item in asked] == [104] * 5
        values = scraped(server)
    assert max(parked) >= 2
    assert (values["num_requests_parked"], values["num_requests_waiting"], values["kv_cache_usage_perc"]) == (0, 0, 0)


def test_names_and_numbers() -> None:
    with live_server() as server:
        with OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0, timeout=20) as client:
            client.completions.create(model=NAME, prompt=[5] * 20, max_tokens=7)
            client.completions.create(model=NAME, prompt=[5] * 20, max_tokens=7)
        text = httpx.get(f"{server.url}/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    for names, kind in ((GAUGES, "gauge"), (COUNTERS, "counter"), (HISTOGRAMS, "histogram")):
        for name in names:
            assert families[f"tokenspeed:{name}"].type == kind, name
    values = {
        (sample.name, sample.labels.get("finished_reason")): sample.value
        for family in families.values()
        for sample in family.samples
        if "le" not in sample.labels
    }
    assert values["tokenspeed:prompt_tokens_total", None] == 40
    assert values["tokenspeed:generation_tokens_total", None] == 14
    assert values["tokenspeed:request_success_total", "length"] == 2
    assert values["tokenspeed:prefix_cache_hits_total", None] == 16
    assert values["tokenspeed:time_to_first_token_seconds_count", None] == 2
    assert values["tokenspeed:inter_token_latency_seconds_count", None] == 12
    assert values["tokenspeed:request_decode_time_seconds_count", None] == 2
    assert values["tokenspeed:request_generation_tokens_sum", None] == 14
    assert values["tokenspeed:num_requests_running", None] == 0
    assert values["tokenspeed:engine_busy_seconds_total", None] > 0
    assert values["tokenspeed:engine_host_seconds_total", None] > 0
    buckets = {
        sample.labels["le"] for sample in families["tokenspeed:time_to_first_token_seconds"].samples if "le" in sample.labels
    }
    assert {"0.001", "0.06", "0.75", "2560.0", "+Inf"} <= buckets
