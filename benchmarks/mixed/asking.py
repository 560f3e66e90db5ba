"""One streamed completion of tokens, and what the server counts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from tokenspeed.runtime.benchmark.exchange import Exchange, stream_answer
from tokenspeed.runtime.benchmark.http_stream import Server, request

REQUEST_SECONDS = 300.0


async def ask(server: Server, prompt: Sequence[int], output_tokens: int, fields: Mapping[str, Any]) -> Exchange:
    """Errors are told in the exchange; a request that takes longer than REQUEST_SECONDS is one."""
    body: dict[str, Any] = {"prompt": prompt, "max_tokens": output_tokens, "temperature": 0, "ignore_eos": True}
    body |= {"stream": True, "stream_options": {"include_usage": True}, "return_token_ids": True, **fields}
    exchange = Exchange()
    await stream_answer(server, "completions", msgspec.json.encode(body), REQUEST_SECONDS, exchange)
    return exchange


def output_of(exchange: Exchange) -> list[int]:
    return [token for part in exchange.token_ids for token in part]


async def counters(server: Server) -> dict[str, float]:
    """The server's gauges and totals by name, without prefix and labels; those of histograms are left out."""
    async with asyncio.timeout(30), request(server, "GET", "/metrics") as answer:
        text = (await answer.whole()).decode()
    found: dict[str, float] = {}
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        if name.startswith("tokenspeed:") and "le=" not in name:
            plain = name.removeprefix("tokenspeed:").partition("{")[0].removesuffix("_total")
            found[plain] = found.get(plain, 0.0) + float(value)
    return found


async def close_session(server: Server, session: str) -> None:
    async with asyncio.timeout(30), request(server, "DELETE", f"/v1/sessions/{session}") as answer:
        await answer.whole()
