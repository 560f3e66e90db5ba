"""The one evaluator of a plan's cost tables; compiler, scheduler, simulator and gateway all use it.

A step in parts that follow each other (`StepModel`): products and all else that depends on rows alone, attention of decoding
rows, attention of prompts' rows, launches and collectives. Each part is a roofline (Williams, Waterman and Patterson, 2009) over
the rates and step costs in `Performance`. Pure, no arrays, no clock.

Rates that every plan has: "compute" in FLOP/s, "bandwidth" in B/s, "dispatch" in seconds per instruction. Measured ones, which a
plan may have: "products", the share of compute that products of many rows reach (without: 1); "overlap", how far arithmetic and
traffic of products hide each other (without: wholly, see `_joined`); "attention" in FLOP/s, that of prompts (without: compute);
"kv_bandwidth" in B/s, at which decoding rows read their contexts (without: bandwidth).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from .schema import CostRow, Performance, Schedule

UNITS_OF_MEASURED = {"products": "1", "overlap": "1", "attention": "FLOP/s", "kv_bandwidth": "B/s"}
"""Rates that a plan may have, with their units."""


class StepWork(NamedTuple):
    """What a step has to do: `rows` of decoding sequences and of chunks of prompts together, the tokens that its decoding rows
    attend to, and of its chunks the (query, key) pairs, the tokens whose K and V they read, and the most of those that one reads.
    """

    rows: float
    decode_tokens: float = 0.0
    prompt_pairs: float = 0.0
    prompt_tokens: float = 0.0
    longest: float = 0.0

    @property
    def token_pairs(self) -> float:
        """(query, key) pairs of all rows."""
        return self.decode_tokens + self.prompt_pairs

    @property
    def context_tokens(self) -> float:
        """Tokens whose K and V are read."""
        return self.decode_tokens + self.prompt_tokens

    def with_chunk(self, before: int, tokens: int) -> StepWork:
        """With `tokens` rows more, of a prompt that has `before` tokens before them."""
        return StepWork(
            self.rows + tokens,
            self.decode_tokens,
            self.prompt_pairs + chunk_token_pairs(before, tokens),
            self.prompt_tokens + before + tokens,
            max(self.longest, before + tokens),
        )


def chunk_work(before: int, tokens: int) -> StepWork:
    """A step of one chunk of a prompt alone."""
    return StepWork(0).with_chunk(before, tokens)


@dataclass(frozen=True, slots=True)
class StepCost:
    """Work of a step at some number of rows: floating-point operations, bytes, instructions (may be fractional), and seconds of
    collectives; shares and `attention_rows` are as in `CostRow`."""

    flops: float
    weight_bytes: float
    activation_bytes: float
    instructions: float
    communication: float = 0.0
    attention_share: float = 1.0
    attention_rows: float = 0.0
    products_share: float = 1.0


def step_cost(performance: Performance, rows: float) -> StepCost:
    """The cost table at `rows`: linear between its rows, the first row's below it, and the last segment continued beyond it.

    A table of one row scales flops and activation bytes with rows beyond it. Shares are those of the next row.
    """
    costs = performance.step_costs
    at = bisect_left([cost.rows for cost in costs], rows)
    if at == 0:
        return _between(costs[0], costs[0], 0.0)
    if at == len(costs):
        if len(costs) == 1:
            factor, only = rows / costs[0].rows, costs[0]
            work = only.flops * factor, only.weight_bytes, only.activation_bytes * factor
            shares = only.attention_share, only.attention_rows, only.products_share
            return StepCost(*work, only.instructions, only.communication * factor, *shares)
        at -= 1
    low, high = costs[at - 1], costs[at]
    return _between(low, high, (rows - low.rows) / (high.rows - low.rows))


class _OfRows(NamedTuple):
    """A step's cost at some number of rows; seconds that depend on rows alone, of a (query, key) pair of prompts, and of a token
    of their longest context."""

    cost: StepCost
    fixed: float
    pair: float
    longest: float


class StepModel:
    """Predicted seconds of steps of one plan, for many of them: what depends on rows alone is evaluated once.

    products = (flops(rows) / (compute * products * products_share(rows)))
               joined with (weight and activation bytes(rows) / bandwidth)
    decoding = decode_tokens * max(kv_bytes_per_token / bandwidth, attention_flops_per_token_pair / compute)
    prompts = max(attention_flops_per_token_pair * prompt_pairs / (attention * attention_share(rows)),
                  attention_flops_per_token_pair * longest * attention_rows(rows) / attention,
                  kv_bytes_per_token * prompt_tokens / bandwidth)
    seconds = products + decoding + prompts + instructions(rows) * dispatch + communication(rows)
    """

    def __init__(self, performance: Performance) -> None:
        rates = {name: rate.value for name, rate in performance.rates.items()}
        self._performance, self._of_rows = performance, dict[float, _OfRows]()
        self._compute, self._bandwidth, self._dispatch = rates["compute"], rates["bandwidth"], rates["dispatch"]
        self._products, self._overlap = rates.get("products", 1.0) * self._compute, rates.get("overlap", math.inf)
        of_pair = performance.attention_flops_per_token_pair
        self._pair = of_pair / rates.get("attention", self._compute)
        self._read_token = performance.kv_bytes_per_token / self._bandwidth
        read = performance.kv_bytes_per_token / rates.get("kv_bandwidth", self._bandwidth)
        self.decode_token_seconds = max(read, of_pair / self._compute)
        """Of a token that a decoding row attends to."""

    def seconds(self, work: StepWork, padded_rows: float | None = None) -> float:
        """Of a step, which may be run with more rows than it has."""
        rows = work.rows if padded_rows is None else padded_rows
        found = self._at(rows)
        seconds = found.fixed + work.decode_tokens * self.decode_token_seconds
        if not work.prompt_tokens:
            return seconds
        return seconds + max(work.prompt_pairs * found.pair, work.longest * found.longest, work.prompt_tokens * self._read_token)

    def pair_seconds(self, rows: float) -> float:
        """Of a (query, key) pair of prompts in a step of so many rows."""
        return self._at(rows).pair

    def roofline(self, work: StepWork) -> float:
        """What all of a step's work keeps the machine busy for at best: at the full rates, arithmetic and traffic together,
        without launches and collectives."""
        performance, cost = self._performance, self._at(work.rows).cost
        flops = cost.flops + performance.attention_flops_per_token_pair * work.token_pairs
        moved = cost.weight_bytes + cost.activation_bytes + performance.kv_bytes_per_token * work.context_tokens
        return max(flops / self._compute, moved / self._bandwidth)

    def _at(self, rows: float) -> _OfRows:
        found = self._of_rows.get(rows)
        if found is None:
            found = self._of_rows[rows] = self._evaluate(rows)
        return found

    def _evaluate(self, rows: float) -> _OfRows:
        cost = step_cost(self._performance, rows)
        arithmetic = cost.flops / (self._products * cost.products_share)
        traffic = (cost.weight_bytes + cost.activation_bytes) / self._bandwidth
        fixed = _joined(arithmetic, traffic, self._overlap) + cost.instructions * self._dispatch + cost.communication
        return _OfRows(cost, fixed, self._pair / cost.attention_share, self._pair * cost.attention_rows)


def step_seconds(performance: Performance, work: StepWork) -> float:
    """Predicted seconds of one step (`StepModel`)."""
    return StepModel(performance).seconds(work)


def _joined(one: float, other: float, overlap: float) -> float:
    """Seconds of two things that hide each other: (one ** overlap + other ** overlap) ** (1 / overlap). So wholly, the larger
    one, where overlap is infinite, and not at all, their sum, where it is 1."""
    low, high = min(one, other), max(one, other)
    return high if math.isinf(overlap) or not high else high * (1 + (low / high) ** overlap) ** (1 / overlap)


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

    model, beside = StepModel(performance), StepWork(others, others * context)
    first = sum(model.seconds(beside.with_chunk(before, tokens)) for before, tokens in chunks)
    plain = model.seconds(StepWork(concurrent, concurrent * context))
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
    slowest = max(stages, key=lambda stage: step_seconds(stage, StepWork(rows, context)))
    if count == 1:
        return predict(slowest, schedule, traffic, groups)
    one = predict(_times(slowest, count), schedule, {**traffic, "concurrency": max(1.0, traffic["concurrency"] / count)}, groups)
    turns = max(1.0, min(count, traffic["concurrency"] / groups))
    return {name: value * turns if name.endswith("per_second") else value for name, value in one.items()}


def _times(performance: Performance, count: int) -> Performance:
    """What takes so many times as long."""
    costs = tuple(
        msgspec.structs.replace(
            cost,
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
        high.attention_share,
        high.attention_rows,
        high.products_share,
    )
