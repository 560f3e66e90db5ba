"""Load on an OpenAI-compatible server over HTTP, streaming: what its clients see. Bounded in requests and in time."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from ...plans.errors import TokenspeedError
from .environment import Environment, environment
from .http_stream import HttpFailed, Server, events, request
from .statistics import Summary, ratio, summarise

# Ids that every vocabulary has, past the special tokens at its start.
_FIRST_TOKEN, _LAST_TOKEN = 300, 1000
_WORDS = ("time", "people", "water", "system", "number", "point", "house", "world", "school", "state", "family", "group")
_LISTED_ERRORS = 5
UNFINISHED = "unfinished"

Api = Literal["completions", "chat"]


class ServerFailed(TokenspeedError):
    """The server cannot be benchmarked: not reachable, or it names no model."""


@dataclass(frozen=True)
class ServeOptions:
    """`rate`: requests per second, arriving at random (Poisson), at most `concurrency` at once; None: a closed loop.

    `request_seconds` and `total_seconds` are time limits. `ignore_eos` sends that extension (vLLM, SGLang, tokenspeed know it).
    """

    server: Server
    model: str | None
    api: Api
    requests: int
    concurrency: int
    prompt_tokens: int
    output_tokens: int
    rate: float | None
    ignore_eos: bool
    request_seconds: float
    total_seconds: float
    seed: int = 0


@dataclass
class Exchange:
    """One request as its client saw it; seconds since it began to connect. `events` are the arrivals of text."""

    events: list[float] = field(default_factory=list)
    end: float = 0.0
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int = 0
    error: str = ""

    @property
    def tokens(self) -> int:
        """Output tokens by the server's own count, or text events where it gives none."""
        return len(self.events) if self.output_tokens is None else self.output_tokens

    @property
    def per_token(self) -> float:
        """Time per output token after the first; needs two tokens."""
        return (self.events[-1] - self.events[0]) / (self.tokens - 1)


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


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: object = None


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


_decode_event = msgspec.json.Decoder(_Event).decode


def measure_serve(options: ServeOptions, url: str, say: Callable[[str], None]) -> ServeReport:
    """Raises ServerFailed when there is no such server; errors of single requests are counted."""
    return asyncio.run(_measure(options, url, say))


async def _measure(options: ServeOptions, url: str, say: Callable[[str], None]) -> ServeReport:
    model = options.model or await _first_model(options)
    say(f"{model}: {options.requests} requests, {options.concurrency} at a time")
    exchanges: list[Exchange] = []
    done = 0

    async def one(number: int) -> None:
        nonlocal done
        exchange = Exchange(error=UNFINISHED)
        exchanges.append(exchange)
        await _exchange(options, model, number, exchange)
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


async def _first_model(options: ServeOptions) -> str:
    try:
        async with asyncio.timeout(options.request_seconds), request(options.server, "GET", "/v1/models") as answer:
            body = await answer.whole()
            if answer.status != 200:
                raise HttpFailed(f"HTTP {answer.status}: {_shown(body)}")
            models = msgspec.json.decode(body, type=_Models).data
    except (HttpFailed, TimeoutError, msgspec.DecodeError) as error:
        raise ServerFailed(
            "The server does not tell its models.",
            where=f"{options.server.host}:{options.server.port}",
            expected="an answer of GET /v1/models",
            got=str(error) or "no answer in time",
            fix="check --url and --api-key, or name the model with --model",
        ) from None
    if not models:
        raise ServerFailed("The server has no model.", where="/v1/models", fix="name one with --model")
    return models[0].id


async def _exchange(options: ServeOptions, model: str, number: int, exchange: Exchange) -> None:
    """Fill in `exchange`; its error is emptied at a good end."""
    path = "/v1/chat/completions" if options.api == "chat" else "/v1/completions"
    body = request_body(options, model, number)
    start = time.perf_counter()
    try:
        async with asyncio.timeout(options.request_seconds):
            async with request(options.server, "POST", path, body) as answer:
                if answer.status != 200:
                    raise HttpFailed(f"HTTP {answer.status}: {_shown(await answer.whole())}")
                async with aclosing(events(answer.body)) as parts:
                    async for data in parts:
                        if data == b"[DONE]":
                            break
                        _take(_decode_event(data), exchange, time.perf_counter() - start)
        exchange.end = time.perf_counter() - start
        exchange.error = "" if exchange.events else "the answer holds no text"
    except (HttpFailed, msgspec.DecodeError) as error:
        exchange.error = str(error)
    except TimeoutError:
        exchange.error = f"no end within {options.request_seconds:g} s"


def _take(event: _Event, exchange: Exchange, now: float) -> None:
    if event.error is not None:
        raise HttpFailed(f"error event: {_shown(msgspec.json.encode(event.error))}")
    if any(_has_text(choice) for choice in event.choices):
        exchange.events.append(now)
    if event.usage is not None:
        exchange.prompt_tokens, exchange.output_tokens = event.usage.prompt_tokens, event.usage.completion_tokens
        details = event.usage.prompt_tokens_details
        exchange.cached_tokens = (details.cached_tokens or 0) if details else 0


def _has_text(choice: _Choice) -> bool:
    delta = choice.delta
    return bool(choice.text or (delta and (delta.content or delta.reasoning_content)))


def request_body(options: ServeOptions, model: str, number: int) -> bytes:
    """A prompt of random tokens (`completions`) or of about as many words (`chat`), other ones for each `number`."""
    chosen = random.Random(f"{options.seed} {number}")
    body: dict[str, object] = {
        "model": model,
        "max_tokens": options.output_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if options.ignore_eos:
        body["ignore_eos"] = True
    if options.api == "chat":
        text = " ".join(chosen.choice(_WORDS) for _ in range(options.prompt_tokens))
        body["messages"] = [{"role": "user", "content": text}]
    else:
        body["prompt"] = [chosen.randrange(_FIRST_TOKEN, _LAST_TOKEN) for _ in range(options.prompt_tokens)]
    return msgspec.json.encode(body)


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


def _shown(body: bytes) -> str:
    return " ".join(body.decode(errors="replace").split())[:300]
