"""Answers that know when their client leaves: server-sent events, and whole answers that take a while."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import ExitStack, aclosing
from typing import Any, TypeVar

import msgspec
from starlette.types import Receive, Scope, Send

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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        gone = asyncio.create_task(_disconnected(receive))
        with self._resources:
            try:
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                async with aclosing(_with_heartbeats(self._events, gone)) as parts:
                    async for part in parts:
                        await send({"type": "http.response.body", "body": part, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            except OSError:
                pass  # the connection broke while sending
            finally:
                gone.cancel()


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


async def _with_heartbeats(events: AsyncGenerator[bytes, None], gone: asyncio.Task[None]) -> AsyncGenerator[bytes, None]:
    """The events, with comments in long silences, until they end or the client has left."""
    async with aclosing(events):
        while not gone.done():
            step = asyncio.ensure_future(anext(events, None))
            try:
                while not await _settled(step, gone):
                    yield _HEARTBEAT
                if not step.done() or (part := step.result()) is None:
                    return
                yield part
            finally:
                await _cancelled(step)


async def _settled(step: asyncio.Future[bytes | None], gone: asyncio.Task[None]) -> bool:
    done, _ = await asyncio.wait({step, gone}, timeout=_HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    return bool(done)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancelled(task: asyncio.Future[Any]) -> None:
    """Cancel and let it finish its own clean-up."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
