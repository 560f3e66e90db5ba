"""One streamed request to an OpenAI-compatible server, with the time of everything that came back."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from .http_stream import HttpFailed, Server, events, request

# Ids that every vocabulary has, past the special tokens at its start.
_FIRST_TOKEN, _LAST_TOKEN = 300, 1000
_WORDS = ("time", "people", "water", "system", "number", "point", "house", "world", "school", "state", "family", "group")

Api = Literal["completions", "chat"]


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


_decode_event = msgspec.json.Decoder(_Event).decode


async def send(options: ServeOptions, model: str, number: int, exchange: Exchange) -> None:
    """Fill in `exchange`; its error is emptied at a good end."""
    path = "/v1/chat/completions" if options.api == "chat" else "/v1/completions"
    body = request_body(options, model, number)
    start = time.perf_counter()
    try:
        async with asyncio.timeout(options.request_seconds):
            async with request(options.server, "POST", path, body) as answer:
                if answer.status != 200:
                    raise HttpFailed(f"HTTP {answer.status}: {shown(await answer.whole())}")
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
        raise HttpFailed(f"error event: {shown(msgspec.json.encode(event.error))}")
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


def shown(body: bytes) -> str:
    return " ".join(body.decode(errors="replace").split())[:300]
