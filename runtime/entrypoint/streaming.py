"""Answers that know when their client leaves: server-sent events, and whole answers that take a while."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import ExitStack, aclosing
from typing import Any, TypeVar

import msgspec
from starlette.types import Message, Receive, Scope, Send

from .api_error import ApiError

Value = TypeVar("Value")
_HEARTBEAT_SECONDS = 15.0  # proxies drop connections that are silent for a minute
_HEARTBEAT = b": waiting\n\n"
DONE = b"data: [DONE]\n\n"


def event(content: Mapping[str, Any]) -> bytes:
    """One server-sent event with a JSON body."""
    return b"data: " + msgspec.json.encode(content) + b"\n\n"


class EventStream:
    """An ASGI response that sends `events` as they come. When the client leaves, `events` is closed; `resources` always is."""

    def __init__(self, events: AsyncGenerator[bytes, None], resources: ExitStack) -> None:
        self._events, self._resources = events, resources
        self._sent, self._sending = 0, False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._resources:
            gone, sending = asyncio.create_task(_disconnected(receive)), asyncio.create_task(self._send_all(send))
            try:
                while not await self._settled(sending, gone):
                    await send({"type": "http.response.body", "body": _HEARTBEAT, "more_body": True})
                if sending.done():
                    sending.result()
            except OSError:
                pass  # the connection broke while sending
            finally:
                gone.cancel()
                await _cancelled(sending)

    async def _send_all(self, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        async with aclosing(self._events) as parts:
            await self._send(send, {"type": "http.response.start", "status": 200, "headers": headers})
            async for part in parts:
                await self._send(send, {"type": "http.response.body", "body": part, "more_body": True})
            await self._send(send, {"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, message: Message) -> None:
        self._sending = True
        await send(message)
        self._sending = False
        self._sent += 1

    async def _settled(self, sending: asyncio.Task[None], gone: asyncio.Task[None]) -> bool:
        """False once nothing was sent for so long that a sign of life is due."""
        while not sending.done() and not gone.done():
            sent = self._sent
            await asyncio.wait({sending, gone}, timeout=_HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if self._sent == sent and not (self._sending or sending.done() or gone.done()):
                return False
        return True


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, Value]) -> Value:
    """The result of `work`, which is cancelled when the client leaves first. Raises ApiError (499) then."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ApiError(499, "the client went away")
    finally:
        gone.cancel()
        await _cancelled(task)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancelled(task: asyncio.Future[Any]) -> None:
    """Cancel and let it finish its own clean-up."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
