"""Streams: a sign of life in long silences, and clean-up on every way out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from typing import Any

import pytest
from tokenspeed.runtime.entrypoint import streaming
from tokenspeed.runtime.entrypoint.api_error import ApiError
from tokenspeed.runtime.entrypoint.streaming import EventStream, unless_disconnected


class Connection:
    """An ASGI connection that records what was sent and leaves after `leaves_after` messages."""

    def __init__(self, leaves_after: int = 10**9, breaks_after: int = 10**9) -> None:
        self.sent: list[Any] = []
        self.closed = False
        self._leaves_after, self._breaks_after = leaves_after, breaks_after
        self._gone = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if len(self.sent) >= self._breaks_after:
            raise OSError("broken pipe")
        self.sent.append(message)
        if len(self.sent) >= self._leaves_after:
            self._gone.set()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


async def numbers(log: list[str], count: int, pause: float = 0.0) -> AsyncGenerator[bytes, None]:
    try:
        for n in range(count):
            await asyncio.sleep(pause)
            yield b"%d," % n
    finally:
        log.append("closed")


async def stream(connection: Connection, log: list[str], count: int, pause: float = 0.0) -> None:
    resources = ExitStack()
    resources.callback(lambda: log.append("released"))
    await EventStream(numbers(log, count, pause), resources)({"type": "http"}, connection.receive, connection.send)


def test_events_come_through_in_order() -> None:
    log: list[str] = []

    async def run() -> Connection:
        connection = Connection()
        await stream(connection, log, 4)
        return connection

    connection = asyncio.run(run())
    assert connection.body == b"0,1,2,3,"
    assert connection.sent[-1]["more_body"] is False
    assert log == ["closed", "released"]


@pytest.mark.parametrize(("leaves", "breaks"), [(3, 10**9), (10**9, 3)])
def test_a_client_that_goes_closes_the_source(leaves: int, breaks: int) -> None:
    log: list[str] = []

    async def run() -> None:
        await asyncio.wait_for(stream(Connection(leaves, breaks), log, 10**6, pause=0.001), 10)

    asyncio.run(run())
    assert log == ["closed", "released"]


def test_long_silences_carry_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_HEARTBEAT_SECONDS", 0.02)
    log: list[str] = []

    async def run() -> Connection:
        connection = Connection()
        await stream(connection, log, 2, pause=0.15)
        return connection

    body = asyncio.run(run()).body
    assert body.count(b": waiting\n\n") >= 4
    assert body.replace(b": waiting\n\n", b"") == b"0,1,"


def test_work_is_cancelled_when_nobody_waits() -> None:
    log: list[str] = []

    async def work() -> int:
        try:
            await asyncio.sleep(60)
        finally:
            log.append("cancelled")
        return 1

    async def run() -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        with pytest.raises(ApiError) as caught:
            await unless_disconnected(receive, work())
        assert caught.value.status == 499

    asyncio.run(run())
    assert log == ["cancelled"]
