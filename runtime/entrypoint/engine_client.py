"""The entrypoint's end of the two ZeroMQ sockets: commands out, news in, sorted to the requests they belong to."""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio

from ..protocol import (
    Abort,
    Accepted,
    CloseSession,
    Drained,
    EndTurn,
    EngineCommand,
    EngineFailed,
    EngineNews,
    EngineStats,
    Ready,
    Rejected,
    Shutdown,
    StepNews,
    Submit,
    TokenEvent,
    TurnEnd,
)
from .api_error import ApiError, unavailable

_log = logging.getLogger("tokenspeed.engine")
_SOCKET_PATH_LIMIT = 100  # bytes; the kernel's limit is 107
NewsListener = Callable[[StepNews], None]


class Sockets:
    """Two ipc sockets in a private directory (0700). `commands` and `news` are the addresses the engine connects to."""

    def __init__(self) -> None:
        directory = tempfile.mkdtemp(prefix="tokenspeed-")
        if len(directory) > _SOCKET_PATH_LIMIT - 10:
            shutil.rmtree(directory)
            directory = tempfile.mkdtemp(prefix="tokenspeed-", dir="/tmp")
        self.directory = Path(directory)
        self.commands, self.news = f"ipc://{directory}/commands", f"ipc://{directory}/news"
        self.context = zmq.Context()
        self.sender = self._bound(zmq.PUSH, self.commands)
        self.receiver = self._bound(zmq.PULL, self.news)

    def _bound(self, kind: int, address: str) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self.context.socket(kind)
        socket.set_hwm(0)
        socket.setsockopt(zmq.LINGER, 0)
        socket.bind(address)
        return socket

    def close(self) -> None:
        self.sender.close()
        self.receiver.close()
        self.context.term()
        shutil.rmtree(self.directory, ignore_errors=True)


class RequestStream:
    """All token events of one request's sequences, in order of arrival. Close it: what is unfinished is aborted then.

    News that came while nobody took them are joined, one event for each sequence, so that a reader who is behind the engine
    catches up at the price of longer pieces.
    """

    def __init__(self, client: EngineClient, submits: Sequence[Submit]) -> None:
        self._client = client
        self._open = {submit.request_id for submit in submits}
        self._waiting = set(self._open)
        self._events: dict[str, TokenEvent] = {}
        self._error: ApiError | None = None
        self._news = asyncio.Event()

    def put(self, item: TokenEvent | Accepted | ApiError) -> None:
        if isinstance(item, TokenEvent):
            earlier = self._events.get(item.request_id)
            self._events[item.request_id] = item if earlier is None else joined(earlier, item)
        elif isinstance(item, Accepted):
            self._waiting.discard(item.request_id)
        else:
            self._error = self._error or item
        self._news.set()

    async def accepted(self) -> None:
        """Return when the engine has queued every sequence. Raises ApiError when it refuses one or is gone."""
        while self._waiting:
            await self._wait()

    async def events(self) -> AsyncGenerator[TokenEvent, None]:
        """Until every sequence has ended. Raises ApiError when the engine fails, after what came before."""
        await self.accepted()
        while self._open:
            while not self._events:
                await self._wait()
            events, self._events = self._events, {}
            for event in events.values():
                if event.finish_reason is not None:
                    self._open.discard(event.request_id)
                yield event

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        self._news.clear()
        await self._news.wait()

    def abort(self, request_id: str) -> None:
        """Tell the engine that nobody waits for this sequence any more."""
        if request_id in self._open:
            self._open.discard(request_id)
            self._client.forget(request_id, abort=True)

    def end_turn(self, session_id: str, end: TurnEnd) -> None:
        """Tell the engine, if it still listens, why the turn that this was ended; not for a request without a session."""
        if session_id and self._client.ready:
            self._client.end_turn(session_id, end)

    def close(self) -> None:
        for request_id in tuple(self._open):
            self.abort(request_id)


class EngineClient:
    """Talks to one engine. Run `listen` as a task; it ends when the engine has failed or drained.

    `failure` is set once the engine cannot be used any more: every open request ends with an error at that moment and
    every later one at once.
    """

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets
        self._receiver = zmq.asyncio.Socket.shadow(sockets.receiver.underlying)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(EngineNews)
        self._streams: dict[str, RequestStream] = {}
        self._listeners: list[NewsListener] = []
        self._ready = asyncio.Event()
        self.startup: dict[str, float] = {}
        self.stats = EngineStats()
        self.failure: EngineFailed | None = None
        self.drained = asyncio.Event()

    @property
    def ready(self) -> bool:
        return self._ready.is_set() and self.failure is None

    @property
    def open_sequences(self) -> int:
        return len(self._streams)

    def on_news(self, listener: NewsListener) -> None:
        """Call `listener` with every step's news."""
        self._listeners.append(listener)

    async def wait_ready(self) -> None:
        """Return when the engine serves or has failed; look at `failure` then."""
        await self._ready.wait()

    async def listen(self) -> None:
        while self.failure is None and not self.drained.is_set():
            self._handle(self._decoder.decode(await self._receiver.recv()))

    def open(self, submits: Sequence[Submit]) -> RequestStream:
        """Submit a request's sequences. Raises ApiError (503, 500) while the engine loads or after it failed."""
        self._check_ready()
        stream = RequestStream(self, submits)
        for submit in submits:
            self._streams[submit.request_id] = stream
            self._send(submit)
        return stream

    def end_turn(self, session_id: str, end: TurnEnd) -> None:
        """A hint; `session_id` is the engine's name of it. Raises ApiError as `open` does."""
        self._check_ready()
        self._send(EndTurn(session_id, end))

    def close_session(self, session_id: str) -> None:
        """A hint. Raises ApiError as `open` does."""
        self._check_ready()
        self._send(CloseSession(session_id))

    def _check_ready(self) -> None:
        if self.failure is not None:
            raise engine_failed(self.failure)
        if not self._ready.is_set():
            raise unavailable("the model is still loading", "loading")

    def forget(self, request_id: str, *, abort: bool) -> None:
        if self._streams.pop(request_id, None) is not None and abort and self.failure is None:
            self._send(Abort(request_id))

    def shut_down(self, *, drain: bool) -> None:
        """Ask the engine to finish (or abort) what runs and to exit; `drained` is set when it has."""
        if self.failure is None:
            self._send(Shutdown(drain))

    def fail(self, failure: EngineFailed) -> None:
        """The engine is gone: end every open request with an error. Only the first failure counts."""
        if self.failure is not None:
            return
        if self._ready.is_set() and not self.drained.is_set():
            _log.error("the engine failed: %s", failure.message)
        self.failure = failure
        self._ready.set()
        self.drained.set()
        streams, self._streams = set(self._streams.values()), {}
        for stream in streams:
            stream.put(engine_failed(failure))

    def _send(self, command: EngineCommand) -> None:
        try:
            self._sockets.sender.send(self._encoder.encode(command), zmq.NOBLOCK)
        except zmq.ZMQError as error:
            self.fail(EngineFailed(f"the engine cannot be reached: {error}", 1))

    def _handle(self, news: EngineNews) -> None:
        match news:
            case StepNews():
                self.stats = news.stats
                for event in news.events:
                    self._deliver(event)
                for listener in self._listeners:
                    listener(news)
            case Accepted():
                if news.request_id in self._streams:
                    self._streams[news.request_id].put(news)
            case Rejected():
                stream = self._streams.get(news.request_id)
                self.forget(news.request_id, abort=False)
                if stream is not None:
                    stream.put(_rejection(news))
            case Ready():
                self.startup = news.startup
                self._ready.set()
            case EngineFailed():
                self.fail(news)
            case Drained():
                self.drained.set()

    def _deliver(self, event: TokenEvent) -> None:
        stream = self._streams.get(event.request_id)
        if stream is None:
            return
        stream.put(event)
        if event.finish_reason is not None:
            self.forget(event.request_id, abort=False)


def joined(first: TokenEvent, second: TokenEvent) -> TokenEvent:
    """The news of two events of a sequence as one."""
    return msgspec.structs.replace(
        second,
        tokens=first.tokens + second.tokens,
        logprobs=first.logprobs + second.logprobs,
        cached_tokens=max(first.cached_tokens, second.cached_tokens),
    )


def engine_failed(failure: EngineFailed) -> ApiError:
    """What a client is told: the first line only, details stay in the server's own log."""
    return ApiError(500, f"the engine failed: {failure.message.splitlines()[0]}", code="engine_failed")


def _rejection(news: Rejected) -> ApiError:
    if news.code == "prompt_too_long":
        return ApiError(400, news.message, param="prompt", code="context_length_exceeded")
    if news.code == "invalid_request":
        return ApiError(400, news.message, code=news.code)
    return unavailable(news.message, news.code)
