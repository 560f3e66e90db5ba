"""The least time a step's work can take on this machine, and what the plan predicts for it.

The roofline (Williams, Waterman and Patterson, 2009): work is either limited by arithmetic or by what must be read.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ...plans.perf_model import StepModel, StepWork, chunk_work, prefill_chunks, step_cost
from ...plans.schema import Performance
from .machine_rates import MachineRates
from .statistics import ratio


class Bound(msgspec.Struct, frozen=True):
    """`read_bytes` are weights and K/V, no activations. Shares are of the measured wall time: the time that the bytes (the
    operations) alone need at this machine's own measured rate, divided by it. `speed_of_light` is the larger one."""

    flops: float
    read_bytes: float
    bandwidth_share: float
    compute_share: float

    @property
    def speed_of_light(self) -> float:
        return max(self.bandwidth_share, self.compute_share)


def prompt_work(tokens: int, chunk: int) -> list[StepWork]:
    return [chunk_work(before, count) for before, count in prefill_chunks(tokens, 0, chunk)]


def decode_work(batch: int, context: float) -> list[StepWork]:
    return [StepWork(batch, batch * context)]


def bound(performance: Performance, work: Sequence[StepWork], rates: MachineRates, seconds: float) -> Bound:
    flops = read = 0.0
    for step in work:
        cost = step_cost(performance, step.rows)
        flops += cost.flops + performance.attention_flops_per_token_pair * step.token_pairs
        read += cost.weight_bytes + performance.kv_bytes_per_token * step.context_tokens
    return Bound(flops, read, ratio(read / rates.read_bandwidth, seconds), ratio(flops / rates.gemm_rate, seconds))


def predicted_seconds(performance: Performance, work: Sequence[StepWork]) -> float:
    """By the plan's own rates (perf_model), not this machine's."""
    model = StepModel(performance)
    return sum(map(model.seconds, work))
