"""Prometheus metrics: the names and buckets that LLM serving dashboards know, with the prefix `tokenspeed:`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..protocol import EngineStats, StepNews

_FIRST_TOKEN_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
)  # fmt: skip
_LATENCY_BUCKETS = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_INTER_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_TOKEN_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000)
_STEP_BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)

_GAUGES = {
    "num_requests_running": ("running", "Sequences in the running batch."),
    "num_requests_waiting": ("waiting", "Sequences waiting to be scheduled."),
    "num_requests_parked": (
        "parked",
        "Those of the waiting whose session is not admitted: the KV cache has no room for its context.",
    ),
    "kv_cache_usage_perc": ("kv_usage", "Share of KV cache blocks in use; 1 is all of them."),
    "host_kv_cache_usage_perc": ("host_usage", "Share of the host tier's KV blocks that hold a copy; 1 is all of them."),
    "disk_kv_cache_usage_perc": ("disk_usage", "Share of the tier on disk that holds KV; 1 is all of it."),
}
_COUNTERS = {
    "engine_busy_seconds": ("busy_seconds", "Time with a step in flight."),
    "engine_host_seconds": ("host_seconds", "Time that the engine's loop worked itself: scheduling, commands, news."),
    "engine_roofline_seconds": ("roofline_seconds", "The least time that the work of all steps takes on the plan's machine."),
    "prompt_tokens": ("prompt_tokens", "Prompt tokens of accepted sequences."),
    "generation_tokens": ("generation_tokens", "Tokens generated."),
    "num_preemptions": ("preemptions", "Sequences set back to the queue for want of KV blocks."),
    "prefix_cache_queries": ("prefix_queries", "Prompt tokens looked up in the prefix cache."),
    "prefix_cache_hits": ("prefix_hits", "Prompt tokens found in the prefix cache."),
    "prefix_cache_host_hits": ("host_hits", "Those of the hits that were brought back from the host."),
    "offloaded_tokens": ("offloaded_tokens", "Tokens whose KV was copied to the host."),
    "reloaded_tokens": ("reloaded_tokens", "Tokens whose KV was brought back from the host."),
    "disk_stored_tokens": ("stored_tokens", "Tokens whose KV was written to disk."),
    "disk_fetched_tokens": ("fetched_tokens", "Tokens whose KV was read from disk."),
    "disk_refused_tokens": ("refused_tokens", "Tokens whose KV on disk could not be read, or had another checksum."),
    "disk_restored_tokens": ("restored_tokens", "Tokens whose KV was on disk when the engine started."),
    "recomputed_tokens": ("recomputed_tokens", "Tokens computed again after a preemption."),
}


class Metrics:
    """One registry of its own. Engine gauges and totals are read when scraped; the rest is observed as it happens."""

    def __init__(self, model_name: str, stats: Callable[[], EngineStats]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(model_name, stats))
        self._model_name = model_name
        self._steps = 0
        self.time_to_first_token = self._histogram(
            "time_to_first_token_seconds", "From the request's arrival to its first token.", _FIRST_TOKEN_BUCKETS
        )
        self.inter_token_latency = self._histogram(
            "inter_token_latency_seconds", "Between a sequence's successive tokens.", _INTER_TOKEN_BUCKETS
        )
        self.end_to_end = self._histogram(
            "e2e_request_latency_seconds", "From the request's arrival to its end.", _LATENCY_BUCKETS
        )
        self.prompt_tokens = self._histogram("request_prompt_tokens", "Prompt tokens of a sequence.", _TOKEN_BUCKETS)
        self.generation_tokens = self._histogram("request_generation_tokens", "Generated tokens of a sequence.", _TOKEN_BUCKETS)
        self._queue = self._histogram("request_queue_time_seconds", "In the engine's queue.", _LATENCY_BUCKETS)
        self._prefill = self._histogram("request_prefill_time_seconds", "From leaving the queue to token 1.", _LATENCY_BUCKETS)
        self._decode = self._histogram("request_decode_time_seconds", "From the first token to the last.", _LATENCY_BUCKETS)
        self._iteration = self._histogram("iteration_tokens_total", "Rows computed by one engine step.", _STEP_BUCKETS)
        self._finished = Counter(
            "tokenspeed:request_success",
            "Sequences that ended, by reason.",
            ("model_name", "finished_reason"),
            registry=self._registry,
        )

    def observe_news(self, news: StepNews) -> None:
        """A step's rows, and the engine's own times of the sequences that ended with it."""
        if news.stats.steps > self._steps:
            self._steps = news.stats.steps
            self._iteration.observe(news.stats.last_step_rows)
        for event in news.events:
            if event.finish_reason is not None:
                self._queue.observe(event.queue_seconds)
                self._prefill.observe(event.prefill_seconds)
                self._decode.observe(event.decode_seconds)

    def finished(self, reason: str) -> None:
        self._finished.labels(self._model_name, reason).inc()

    def exposition(self) -> bytes:
        """The registry in Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)

    def _histogram(self, name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(f"tokenspeed:{name}", documentation, ("model_name",), buckets=buckets, registry=self._registry)
        return histogram.labels(self._model_name)


class _EngineCollector(Collector):
    def __init__(self, model_name: str, stats: Callable[[], EngineStats]) -> None:
        self._model_name, self._stats = model_name, stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        for kind, table in ((GaugeMetricFamily, _GAUGES), (CounterMetricFamily, _COUNTERS)):
            for name, (field, documentation) in table.items():
                family = kind(f"tokenspeed:{name}", documentation, labels=("model_name",))
                family.add_metric((self._model_name,), getattr(stats, field))
                yield family
