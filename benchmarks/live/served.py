"""What a server's clients saw, and what it counted meanwhile."""

from __future__ import annotations

from dataclasses import dataclass

from tokenspeed.runtime.benchmark.replay import ReplayReport
from tokenspeed.runtime.benchmark.statistics import ratio

from .predicted import Constants


@dataclass(frozen=True)
class Served:
    """`used`: by how much the server's totals grew. `constants` are those of this server, for the simulator. `ready_seconds`:
    from its start until it served."""

    report: ReplayReport
    used: dict[str, float]
    constants: Constants
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

    def host_seconds(self, token_seconds: float) -> float:
        """What a step costs the engine's loop, on average, when the tokens of sequences that begin and end have taken theirs."""
        steps, turns = self.used.get("iteration_tokens_total_count", 0.0), self.report.all
        tokens = token_seconds * 2 * (turns.input_tokens + turns.output_tokens)
        return max(0.0, ratio(self.used.get("engine_host_seconds", 0.0) - tokens, steps))
