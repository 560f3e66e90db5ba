"""What a request costs outside the steps: an idle server is asked for one token, of prompts of two lengths that it has cached."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from mixed.asking import ask, counters
from tokenspeed.runtime.benchmark.http_stream import Server

from .predicted import Constants

_FEW, _MANY, _REPEATS = 64, 20_000, 7
_FIRST_TOKEN, _LAST_TOKEN = 300, 1000


@dataclass(frozen=True)
class Probe:
    """Lower quartiles for prompts of so many tokens: seconds in the engine's queue, where they are looked up, and outside of the
    engine, on the way there and back. What else the host does at that time is none of theirs."""

    tokens: int
    queue_seconds: float
    outside_seconds: float


async def probe(server: Server, max_context: int) -> list[Probe]:
    """Raises SystemExit when the server does not answer."""
    return [await _probe(server, tokens) for tokens in (_FEW, min(_MANY, max_context - 2))]


def constants(probes: Sequence[Probe], usual: Constants) -> Constants:
    """What lies between the two lengths goes by tokens, the rest by requests; none less than nothing."""
    few, many = probes
    tokens = many.tokens - few.tokens
    outside = max(0.0, many.outside_seconds - few.outside_seconds) / tokens
    host = max(0.0, many.queue_seconds - few.queue_seconds) / tokens
    fixed = max(0.0, few.outside_seconds - few.tokens * outside)
    return replace(usual, host_token_seconds=host, request_seconds=fixed, request_token_seconds=outside)


async def _probe(server: Server, tokens: int) -> Probe:
    prompt = np.random.default_rng(tokens).integers(_FIRST_TOKEN, _LAST_TOKEN, tokens).tolist()
    queues: list[float] = []
    outsides: list[float] = []
    before = await counters(server)
    for _ in range(_REPEATS + 1):
        reply = await ask(server, prompt, 1, {})
        if reply.error:
            raise SystemExit(f"a prompt of {tokens} tokens: {reply.error}")
        after = await counters(server)
        queue, prefill = (after[name] - before.get(name, 0.0) for name in _ENGINE)
        queues.append(queue)
        outsides.append(reply.events[0] - queue - prefill)
        before = after
    return Probe(tokens, *(statistics.quantiles(found[1:], n=4)[0] for found in (queues, outsides)))


_ENGINE = ("request_queue_time_seconds_sum", "request_prefill_time_seconds_sum")
