"""One streamed completion of tokens, with the time of everything that came back."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from tokenspeed.runtime.benchmark.http_stream import HttpFailed, Server, events, request

REQUEST_SECONDS = 300.0


@dataclass
class Reply:
    """`sent` and `arrivals` are times of `time.perf_counter`; an arrival brings one token or several."""

    sent: float
    arrivals: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    error: str = ""

    @property
    def first_token_seconds(self) -> float:
        return self.arrivals[0] - self.sent

    @property
    def gaps(self) -> list[float]:
        """Seconds between one arrival and the next."""
        return [later - earlier for earlier, later in zip(self.arrivals, self.arrivals[1:], strict=False)]


async def ask(server: Server, prompt: Sequence[int], output_tokens: int, fields: Mapping[str, Any]) -> Reply:
    """Errors are told in the reply; a request that takes longer than REQUEST_SECONDS is one."""
    body: dict[str, Any] = {"prompt": list(prompt), "max_tokens": output_tokens, "temperature": 0, "ignore_eos": True}
    body |= {"stream": True, "stream_options": {"include_usage": True}, "return_token_ids": True, **fields}
    data = json.dumps(body).encode()
    reply = Reply(time.perf_counter())
    try:
        async with asyncio.timeout(REQUEST_SECONDS), request(server, "POST", "/v1/completions", data) as answer:
            if answer.status != 200:
                raise HttpFailed(f"HTTP {answer.status}: {(await answer.whole()).decode(errors='replace')[:300]}")
            async with aclosing(events(answer.body)) as parts:
                async for part in parts:
                    if part == b"[DONE]":
                        break
                    _take(json.loads(part), reply)
        if not reply.tokens:
            reply.error = "no token came"
    except (HttpFailed, TimeoutError) as error:
        reply.error = str(error) or f"no end within {REQUEST_SECONDS:g} s"
    return reply


async def counters(server: Server) -> dict[str, float]:
    """The server's gauges and totals by name, without prefix and labels; those of histograms are left out."""
    async with asyncio.timeout(30), request(server, "GET", "/metrics") as answer:
        text = (await answer.whole()).decode()
    found: dict[str, float] = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name.startswith("tokenspeed:") and "le=" not in name:
            plain = name.removeprefix("tokenspeed:").partition("{")[0].removesuffix("_total")
            found[plain] = found.get(plain, 0.0) + float(value)
    return found


async def close_session(server: Server, session: str) -> None:
    async with asyncio.timeout(30), request(server, "DELETE", f"/v1/sessions/{session}") as answer:
        await answer.whole()


def _take(event: dict[str, Any], reply: Reply) -> None:
    if "error" in event:
        raise HttpFailed(f"error event: {event['error']['message']}")
    for choice in event.get("choices", ()):
        if tokens := choice.get("token_ids"):
            reply.arrivals.append(time.perf_counter())
            reply.tokens += tokens
    if usage := event.get("usage"):
        reply.prompt_tokens = usage["prompt_tokens"]
        reply.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
