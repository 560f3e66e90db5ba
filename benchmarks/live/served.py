"""What a server's clients saw, what it counted meanwhile, and the constants for the simulator that follow from both."""

from __future__ import annotations

from dataclasses import dataclass

from tokenspeed.runtime.benchmark.replay import ReplayReport
from tokenspeed.runtime.benchmark.statistics import ratio


@dataclass(frozen=True)
class Served:
    """`used`: by how much the server's totals grew. `ready_seconds`: from its start until it served."""

    report: ReplayReport
    used: dict[str, float]
    ready_seconds: float
    warm_up_seconds: float

    @property
    def hit_rate(self) -> float:
        return ratio(self.used.get("prefix_cache_hits", 0.0), self.used.get("prefix_cache_queries", 0.0))

    @property
    def busy_share(self) -> float:
        return ratio(self.used.get("engine_busy_seconds", 0.0), self.report.makespan_seconds)

    @property
    def speed_of_light_share(self) -> float:
        return ratio(self.used.get("engine_roofline_seconds", 0.0), self.report.makespan_seconds)

    @property
    def host_seconds(self) -> float:
        """What a step costs the engine's loop, on average."""
        return ratio(self.used.get("engine_host_seconds", 0.0), self.used.get("iteration_tokens_total_count", 0.0))

    @property
    def request_seconds(self) -> float | None:
        """What is between a client and the engine, on average: until the first token as clients see it, less the engine's time
        in its queue and until the prompt's end. None where turns were left: the two do not tell of the same ones."""
        if self.report.traffic["unfinished"]:
            return None
        requests = self.used.get("request_queue_time_seconds_count", 0.0)
        engine = self.used.get("request_queue_time_seconds_sum", 0.0) + self.used.get("request_prefill_time_seconds_sum", 0.0)
        return max(0.0, self.report.all.ttft_seconds.mean - ratio(engine, requests))
