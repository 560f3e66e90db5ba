"""Load on an OpenAI-compatible server over HTTP, streaming: what its clients see. Bounded in requests and in time."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from .environment import Environment, environment
from .exchange import Exchange, stream_answer
from .models import served_model
from .random_requests import ServeOptions, request_body
from .statistics import Summary, ratio, summarise

_LISTED_ERRORS = 5
UNFINISHED = "unfinished"


class ServeReport(msgspec.Struct, frozen=True):
    """Only requests that ended well count, but for `failed`, `unfinished` (cut off by the time limit) and `errors`.

    `inter_token_seconds` are gaps between stream events; `tokens_counted_by` says whether token counts are the server's own.
    """

    url: str
    model: str
    environment: Environment
    requests: int
    succeeded: int
    failed: int
    unfinished: int
    errors: list[str]
    concurrency: int
    rate: float | None
    wall_seconds: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    tokens_counted_by: str
    hit_rate: float
    requests_per_second: float
    output_tokens_per_second: float
    input_tokens_per_second: float
    tokens_per_second_per_user: float
    ttft_seconds: Summary
    tpot_seconds: Summary
    inter_token_seconds: Summary
    request_seconds: Summary


def measure_serve(options: ServeOptions, url: str, say: Callable[[str], None]) -> ServeReport:
    """Raises ServerFailed when there is no such server; errors of single requests are counted."""
    return asyncio.run(_measure(options, url, say))


async def _measure(options: ServeOptions, url: str, say: Callable[[str], None]) -> ServeReport:
    model = options.model or (await served_model(options.server, options.request_seconds)).id
    say(f"{model}: {options.requests} requests, {options.concurrency} at a time")
    exchanges: list[Exchange] = []
    done = 0

    async def one(number: int) -> None:
        nonlocal done
        exchange = Exchange(error=UNFINISHED)
        exchanges.append(exchange)
        body = request_body(options, model, number)
        await stream_answer(options.server, options.api, body, options.request_seconds, exchange)
        done += 1
        say(f"{done} of {options.requests} requests answered")

    start = time.perf_counter()
    try:
        async with asyncio.timeout(options.total_seconds):
            await _drive(options, one)
    except TimeoutError:
        say("the time limit was reached")
    return _report(options, url, model, exchanges, time.perf_counter() - start)


async def _drive(options: ServeOptions, one: Callable[[int], Coroutine[Any, Any, None]]) -> None:
    """All requests, never more than `concurrency` at once."""
    room = asyncio.Semaphore(options.concurrency)
    arrivals = random.Random(options.seed)

    async def run(number: int) -> None:
        try:
            await one(number)
        finally:
            room.release()

    async with asyncio.TaskGroup() as tasks:
        for number in range(options.requests):
            if options.rate is not None and number:
                await asyncio.sleep(arrivals.expovariate(options.rate))
            await room.acquire()
            tasks.create_task(run(number))


def _report(options: ServeOptions, url: str, model: str, exchanges: list[Exchange], wall: float) -> ServeReport:
    good = [item for item in exchanges if not item.error]
    cut_off = sum(item.error == UNFINISHED for item in exchanges)
    failures = [item.error for item in exchanges if item.error and item.error != UNFINISHED]
    tpot = summarise([item.per_token for item in good if item.tokens > 1])
    prompts = sum(options.prompt_tokens if item.prompt_tokens is None else item.prompt_tokens for item in good)
    output, cached = sum(item.tokens for item in good), sum(item.cached_tokens for item in good)
    by_server = all(item.output_tokens is not None for item in good)
    gaps = [later - earlier for item in good for earlier, later in zip(item.events, item.events[1:], strict=False)]
    return ServeReport(
        url=url,
        model=model,
        environment=environment(),
        requests=options.requests,
        succeeded=len(good),
        failed=len(failures),
        unfinished=cut_off + options.requests - len(exchanges),
        errors=list(dict.fromkeys(failures))[:_LISTED_ERRORS],
        concurrency=options.concurrency,
        rate=options.rate,
        wall_seconds=wall,
        prompt_tokens=prompts,
        cached_tokens=cached,
        output_tokens=output,
        tokens_counted_by="server" if by_server else "stream events",
        hit_rate=ratio(cached, prompts),
        requests_per_second=ratio(len(good), wall),
        output_tokens_per_second=ratio(output, wall),
        input_tokens_per_second=ratio(prompts, wall),
        tokens_per_second_per_user=ratio(1.0, tpot.mean),
        ttft_seconds=summarise([item.events[0] for item in good]),
        tpot_seconds=tpot,
        inter_token_seconds=summarise(gaps),
        request_seconds=summarise([item.end for item in good]),
    )
