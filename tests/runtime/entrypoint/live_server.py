"""The real thing on loopback: uvicorn, ZeroMQ, engine loop and scheduler; only the executor is a fake one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, TypeVar

import msgspec
import uvicorn
import zmq
from tokenspeed.runtime.chat_template import ChatTemplate
from tokenspeed.runtime.engine import EngineLoop
from tokenspeed.runtime.engine_channel import EngineChannel
from tokenspeed.runtime.entrypoint.access import ApiKeys
from tokenspeed.runtime.entrypoint.engine_client import EngineClient, Sockets
from tokenspeed.runtime.entrypoint.http_server import make_server
from tokenspeed.runtime.entrypoint.keys_file import TenantKey
from tokenspeed.runtime.entrypoint.listening import listen, url
from tokenspeed.runtime.entrypoint.metrics import Metrics
from tokenspeed.runtime.entrypoint.served_model import ServedModel
from tokenspeed.runtime.entrypoint.service import Service
from tokenspeed.runtime.protocol import Ready, Shutdown
from tokenspeed.runtime.scheduling.kv import KvManager
from tokenspeed.runtime.scheduling.request import SchedulerLimits
from tokenspeed.runtime.scheduling.scheduler import Scheduler
from tokenspeed.runtime.tokenizer import Tokenizer

from ..fake_executor import EchoExecutor
from .tiny_tokenizers import BEGIN, END, byte_level

Value = TypeVar("Value")
NAME, MAX_CONTEXT, KEY = "tiny-model", 256, "sk-secret"
TEMPLATE = """{% for message in messages %}
<|{{ message.role }}|>{{ message.content }}
{%- endfor %}{% if tools %}[{{ tools | tojson }}]{% endif %}
{%- if messages[0].role == 'refused' %}{{ raise_exception('no such role') }}{% endif %}"""
LIMITS = SchedulerLimits(
    max_rows=64, max_decode_rows=8, max_sequences=8, prefill_chunk=32, max_waiting=16, max_context=MAX_CONTEXT
)


def tiny_model(template: str = TEMPLATE) -> ServedModel:
    tokenizer = Tokenizer(byte_level(), BEGIN)
    return ServedModel(NAME, "0" * 64, "1.2.3", tokenizer.vocabulary, MAX_CONTEXT, (END,), tokenizer, ChatTemplate(template, {}))


class EngineThread:
    """The engine process's loop, in a thread; `kv_blocks` blocks of 4 tokens, and `host_blocks` on the host."""

    def __init__(
        self,
        sockets: Sockets,
        *,
        max_context: int = MAX_CONTEXT,
        kv_blocks: int = 512,
        host_blocks: int = 0,
        overlap: bool = True,
    ) -> None:
        self.executor = EchoExecutor()
        limits = replace(LIMITS, max_context=max_context)
        self.scheduler = Scheduler(limits, KvManager(kv_blocks, 4, 8, "test", host_blocks=host_blocks))
        self._sockets, self._overlap = sockets, overlap
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        channel = EngineChannel(self._sockets.commands, self._sockets.news)
        channel.send(Ready({"weights": 0.5}))
        EngineLoop(self.scheduler, self.executor, channel, (END,), overlap=self._overlap).run()
        channel.close()

    def stop(self) -> None:
        """Told directly, as a client that has given the engine up tells it nothing. It may have ended already."""
        self.executor.gate.set()
        with suppress(zmq.Again):
            self._sockets.sender.send(msgspec.msgpack.encode(Shutdown(drain=False)), zmq.NOBLOCK)
        self._thread.join(20)
        assert not self._thread.is_alive()


class LiveServer:
    """A running server. `in_loop` calls a function in the server's event loop."""

    def __init__(
        self,
        *,
        keys: tuple[str, ...] = (),
        named: tuple[TenantKey, ...] = (),
        body_limit: int = 1 << 20,
        overlap: bool = True,
        kv_blocks: int = 512,
        host_blocks: int = 0,
        model: ServedModel | None = None,
    ) -> None:
        self._model = model or tiny_model()
        self._socket = listen("127.0.0.1", 0)
        self.url = url(self._socket)
        self._keys, self._body_limit = ApiKeys(keys, named), body_limit
        self._sockets = Sockets()
        self.engine = EngineThread(
            self._sockets,
            max_context=self._model.max_context,
            kv_blocks=kv_blocks,
            host_blocks=host_blocks,
            overlap=overlap,
        )
        self.executor = self.engine.executor
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._started.wait(20)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        model = self._model
        self.client = EngineClient(self._sockets)
        metrics = Metrics(model.name, lambda: self.client.stats)
        self.client.on_news(metrics.observe_news)
        self.service = Service(model, self.client, self._keys, metrics, body_limit=self._body_limit)
        self._server: uvicorn.Server = make_server(self.service)
        listening = asyncio.create_task(self.client.listen())
        await self.client.wait_ready()
        self._started.set()
        await self._server.serve(sockets=[self._socket])
        self.client.shut_down(drain=False)
        await asyncio.wait_for(listening, 20)

    def in_loop(self, function: Callable[[], Value]) -> Value:
        async def call() -> Value:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(20)

    def stop(self) -> None:
        self.executor.gate.set()
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()
        self.engine.stop()
        self._sockets.close()
        self.engine.scheduler.check_integrity()


@contextmanager
def live_server(**options: Any) -> Iterator[LiveServer]:
    """`options` are those of `LiveServer`."""
    server = LiveServer(**options)
    try:
        yield server
    finally:
        server.stop()
