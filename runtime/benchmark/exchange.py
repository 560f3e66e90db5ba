"""One streamed request to an OpenAI-compatible server, with the time of everything that came back."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from .http_stream import HttpFailed, Server, events, request

Api = Literal["completions", "chat"]
PATHS: dict[Api, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


@dataclass
class Exchange:
    """One request as its client saw it; seconds since it began to connect.

    `events` are the arrivals of text; with each of them came `texts` and, where the server tells them, `token_ids`. `status` is
    HTTP's, 0 where no answer came.
    """

    events: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    token_ids: list[list[int]] = field(default_factory=list)
    end: float = 0.0
    status: int = 0
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
    token_ids: list[int] | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: object = None


_decode_event = msgspec.json.Decoder(_Event).decode


async def stream_answer(server: Server, api: Api, body: bytes, seconds: float, exchange: Exchange) -> None:
    """Send `body` and fill in `exchange` within `seconds`; its error is emptied at a good end."""
    start = time.perf_counter()
    try:
        async with asyncio.timeout(seconds):
            async with request(server, "POST", PATHS[api], body) as answer:
                exchange.status = answer.status
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
        exchange.error = f"no end within {seconds:g} s"


def _take(event: _Event, exchange: Exchange, now: float) -> None:
    if event.error is not None:
        raise HttpFailed(f"error event: {shown(msgspec.json.encode(event.error))}")
    texts = [_text(choice) for choice in event.choices]
    ids = [token for choice in event.choices for token in choice.token_ids or ()]
    if any(texts) or ids:
        exchange.events.append(now)
        exchange.texts.append("".join(texts))
        exchange.token_ids.append(ids)
    if event.usage is not None:
        exchange.prompt_tokens, exchange.output_tokens = event.usage.prompt_tokens, event.usage.completion_tokens
        details = event.usage.prompt_tokens_details
        exchange.cached_tokens = (details.cached_tokens or 0) if details else 0


def _text(choice: _Choice) -> str:
    delta = choice.delta
    return choice.text or (delta and (delta.content or delta.reasoning_content)) or ""


def shown(body: bytes) -> str:
    return " ".join(body.decode(errors="replace").split())[:300]
