"""The one evaluator of a plan's cost tables; compiler, scheduler, simulator and gateway all use it.

A roofline model (Williams, Waterman and Patterson, 2009) over the rates and step costs in `Performance`. Rates used: "compute"
in FLOP/s, "bandwidth" in B/s, "dispatch" in seconds per instruction. Pure, no arrays, no clock.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from .schema import CostRow, Performance, Schedule


@dataclass(frozen=True, slots=True)
class StepCost:
    """Work of a step at some number of rows: floating-point operations, bytes, instructions (may be fractional), and seconds of
    collectives."""

    flops: float
    weight_bytes: float
    activation_bytes: float
    instructions: float
    communication: float = 0.0


def step_cost(performance: Performance, rows: float) -> StepCost:
    """The cost table at `rows`: linear between its rows, the first row's below it, and the last segment continued beyond it.

    A table of one row scales flops and activation bytes with rows beyond it.
    """
    costs = performance.step_costs
    at = bisect_left([cost.rows for cost in costs], rows)
    if at == 0:
        return _between(costs[0], costs[0], 0.0)
    if at == len(costs):
        if len(costs) == 1:
            factor, only = rows / costs[0].rows, costs[0]
            work = only.flops * factor, only.weight_bytes, only.activation_bytes * factor
            return StepCost(*work, only.instructions, only.communication * factor)
        at -= 1
    low, high = costs[at - 1], costs[at]
    return _between(low, high, (rows - low.rows) / (high.rows - low.rows))


def step_seconds(performance: Performance, rows: float, attention_token_pairs: float, context_tokens: float) -> float:
    """Predicted seconds of one step.

        compute = (flops(rows) + attention_flops_per_token_pair * attention_token_pairs) / compute rate
        memory  = (weight_bytes(rows) + activation_bytes(rows) + kv_bytes_per_token * context_tokens) / bandwidth
        seconds = max(compute, memory) + instructions(rows) * dispatch + communication(rows)

    `attention_token_pairs` counts (query, key) pairs over all rows; `context_tokens` counts tokens whose K and V are read.
    """
    return seconds_of_cost(performance, step_cost(performance, rows), attention_token_pairs, context_tokens)


def seconds_of_cost(performance: Performance, cost: StepCost, attention_token_pairs: float, context_tokens: float) -> float:
    """`step_seconds` of a step whose `step_cost` is known."""
    rates = performance.rates
    flops = cost.flops + performance.attention_flops_per_token_pair * attention_token_pairs
    moved = cost.weight_bytes + cost.activation_bytes + performance.kv_bytes_per_token * context_tokens
    roofline = max(flops / rates["compute"].value, moved / rates["bandwidth"].value)
    return roofline + cost.instructions * rates["dispatch"].value + cost.communication


def prefill_chunks(prompt_tokens: int, cached_tokens: int, chunk: int) -> list[tuple[int, int]]:
    """(tokens before it, tokens in it) for each chunk of a prompt whose first `cached_tokens` are cached; at least one is new."""
    start = min(cached_tokens, prompt_tokens - 1)
    return [(at, min(chunk, prompt_tokens - at)) for at in range(start, prompt_tokens, chunk)]


def chunk_token_pairs(before: int, tokens: int) -> int:
    """(query, key) pairs of a causal chunk: each of its rows sees all before it and itself."""
    return tokens * before + tokens * (tokens + 1) // 2


def predict(performance: Performance, schedule: Schedule, traffic: Mapping[str, float], groups: int = 1) -> dict[str, float]:
    """Steady-state predictions for a closed loop of `concurrency` sessions, each always having one request.

    `traffic` keys: prompt_tokens P, cached_fraction c, output_tokens O, concurrency. Model:

    - C = min(concurrency / groups, max_sequences, max_decode_rows) requests are in flight in each of `groups` groups of ranks,
      A in all; a decoding row has P + O / 2 tokens of context.
    - A prompt's P (1 - c) new tokens go in n chunks of at most min(prefill_chunk, max_rows - (C - 1)) rows. A chunk's
      step also carries the C - 1 others' decode rows; ttft0 is the sum of the n steps.
    - Over one request's life of n + O - 1 steps each other request is prefilled once, so a share
      f = min(1, (A - 1) n / (n + O - 1)) of decode steps carries a chunk, in whichever group, and all groups wait for it:
      tpot = (1 - f) t(decode) + f t(decode + chunk).
    - Requests per second = min(C / (ttft0 + (O - 1) tpot), 1 / ttft0): one prefill at a time, and no more than C in flight.
    - ttft = C / requests per second - (O - 1) tpot, which is ttft0 plus the queueing when prefill is the limit (Little's law).

    Returns ttft_seconds, tpot_seconds, request_seconds, and of all groups together requests_per_second,
    output_tokens_per_second, prompt_tokens_per_second (cached ones included). KV capacity is not modelled.
    """
    prompt, output = max(1, round(traffic["prompt_tokens"])), max(1, round(traffic["output_tokens"]))
    sessions = max(1, round(traffic["concurrency"]))
    concurrent = min(math.ceil(sessions / groups), schedule.max_sequences, schedule.max_decode_rows)
    every = min(sessions, concurrent * groups)
    others, context = concurrent - 1, prompt + output / 2
    chunk = max(1, min(schedule.prefill_chunk, schedule.max_rows - others))
    chunks = prefill_chunks(prompt, math.floor(prompt * traffic["cached_fraction"]), chunk)

    def mixed(before: int, tokens: int) -> float:
        pairs = chunk_token_pairs(before, tokens) + others * context
        return step_seconds(performance, tokens + others, pairs, before + tokens + others * context)

    first = sum(mixed(before, tokens) for before, tokens in chunks)
    plain = step_seconds(performance, concurrent, concurrent * context, concurrent * context)
    share = min(1.0, (every - 1) * len(chunks) / (len(chunks) + output - 1))
    per_token = (1 - share) * plain + share * max(plain, first / len(chunks))
    requests = min(concurrent / (first + (output - 1) * per_token), 1 / first)
    life = concurrent / requests
    return {
        "ttft_seconds": life - (output - 1) * per_token,
        "tpot_seconds": per_token,
        "request_seconds": life,
        "requests_per_second": requests * every / concurrent,
        "output_tokens_per_second": requests * output * every / concurrent,
        "prompt_tokens_per_second": requests * prompt * every / concurrent,
    }


def predict_stages(
    stages: Sequence[Performance], schedule: Schedule, traffic: Mapping[str, float], groups: int = 1
) -> dict[str, float]:
    """`predict` for a pipeline of stages, of which each has its costs: S steps are in flight, each with a share of the sessions,
    and each takes S times what the slowest stage takes.

    So a pipeline is S machines that take turns: predictions are of one of them, and rates S times that.
    """
    count = len(stages)
    rows = max(1.0, min(traffic["concurrency"] / groups, schedule.max_decode_rows) / count)
    context = rows * (traffic["prompt_tokens"] + traffic["output_tokens"] / 2)
    slowest = max(stages, key=lambda stage: step_seconds(stage, rows, context, context))
    if count == 1:
        return predict(slowest, schedule, traffic, groups)
    one = predict(_times(slowest, count), schedule, {**traffic, "concurrency": max(1.0, traffic["concurrency"] / count)}, groups)
    turns = max(1.0, min(count, traffic["concurrency"] / groups))
    return {name: value * turns if name.endswith("per_second") else value for name, value in one.items()}


def _times(performance: Performance, count: int) -> Performance:
    """What takes so many times as long."""
    costs = tuple(
        CostRow(
            rows=cost.rows,
            flops=cost.flops * count,
            weight_bytes=cost.weight_bytes * count,
            activation_bytes=cost.activation_bytes * count,
            instructions=cost.instructions * count,
            communication=cost.communication * count,
        )
        for cost in performance.step_costs
    )
    return msgspec.structs.replace(
        performance,
        step_costs=costs,
        attention_flops_per_token_pair=performance.attention_flops_per_token_pair * count,
        kv_bytes_per_token=performance.kv_bytes_per_token * count,
    )


def _between(low: CostRow, high: CostRow, share: float) -> StepCost:
    def mix(one: float, other: float) -> float:
        return max(0.0, one + (other - one) * share)

    return StepCost(
        mix(low.flops, high.flops),
        mix(low.weight_bytes, high.weight_bytes),
        mix(low.activation_bytes, high.activation_bytes),
        mix(low.instructions, high.instructions),
        mix(low.communication, high.communication),
    )
