"""News of one request: joined while nobody takes them, told in order, and never after an error that came first."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tokenspeed.runtime.entrypoint.api_error import ApiError
from tokenspeed.runtime.entrypoint.engine_client import RequestStream
from tokenspeed.runtime.protocol import Accepted, SamplingParameters, Submit, TokenEvent, packed


class Client:
    """What a stream asks of its client."""

    def __init__(self) -> None:
        self.forgotten: list[str] = []

    def forget(self, request_id: str, *, abort: bool) -> None:
        assert abort
        self.forgotten.append(request_id)


def stream_of(*names: str) -> tuple[RequestStream, Client]:
    client: Any = Client()
    return RequestStream(client, [Submit(name, packed((1,)), SamplingParameters(max_tokens=9)) for name in names]), client


def test_news_that_nobody_took_are_joined_for_each_sequence() -> None:
    async def run() -> list[TokenEvent]:
        stream, _ = stream_of("a", "b")
        for name in "ab":
            stream.put(Accepted(name))
        stream.put(TokenEvent("a", (1,), cached_tokens=3))
        stream.put(TokenEvent("b", (7,), finish_reason="stop", stop_token=5))
        stream.put(TokenEvent("a", (2,)))
        stream.put(TokenEvent("a", (3,), finish_reason="length", decode_seconds=2.0))
        return [event async for event in stream.events()]

    first, second = asyncio.run(run())
    assert first == TokenEvent("a", (1, 2, 3), finish_reason="length", cached_tokens=3, decode_seconds=2.0)
    assert second == TokenEvent("b", (7,), finish_reason="stop", stop_token=5)


def test_news_are_told_as_they_come() -> None:
    async def run() -> list[tuple[int, ...]]:
        stream, _ = stream_of("a")
        stream.put(Accepted("a"))
        events, told = stream.events(), []
        for number in range(3):
            stream.put(TokenEvent("a", (number,), finish_reason="length" if number == 2 else None))
            told.append((await anext(events)).tokens)
        assert await anext(events, None) is None
        return told

    assert asyncio.run(run()) == [(0,), (1,), (2,)]


def test_an_error_comes_after_what_was_there_before_it() -> None:
    async def run() -> None:
        stream, client = stream_of("a")
        stream.put(Accepted("a"))
        stream.put(TokenEvent("a", (1,)))
        stream.put(ApiError(500, "the engine failed"))
        events = stream.events()
        assert (await anext(events)).tokens == (1,)
        with pytest.raises(ApiError, match="the engine failed"):
            await anext(events)
        stream.close()
        assert client.forgotten == ["a"]

    asyncio.run(run())
