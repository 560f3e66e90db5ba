"""Serving HTTP: uvicorn under our own signal handling, and draining."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from ...plans.command import INTERRUPTED
from ...plans.errors import TokenspeedError
from .app import make_app
from .service import Service

_LAST_ANSWERS_SECONDS = 5  # for answers that are complete but still on their way out


class Aborted(TokenspeedError):
    """A second signal came: nothing is waited for."""

    exit_code = INTERRUPTED


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals are `serve`'s business: they drain first


def make_server(service: Service) -> uvicorn.Server:
    """The HTTP server, which leaves signals to others."""
    config = uvicorn.Config(
        make_app(service),
        http="h11",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=_LAST_ANSWERS_SECONDS,
    )
    return _Server(config)


async def serve(service: Service, server_socket: socket.socket, drain_timeout: float) -> None:
    """Serve until SIGTERM or SIGINT, then drain up to `drain_timeout` seconds. Raises Aborted on a second signal.

    While draining, the socket still answers: /ready says 503 so that load balancers turn away, and new requests get 503.
    """
    server = make_server(service)
    with _signals() as (first, second):
        serving = asyncio.create_task(server.serve(sockets=[server_socket]))
        drained = asyncio.create_task(_drain(service, first, drain_timeout))
        aborted = asyncio.create_task(second.wait())
        try:
            await asyncio.wait({serving, drained, aborted}, return_when=asyncio.FIRST_COMPLETED)
            server.should_exit = True
            await asyncio.wait({serving, aborted}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (serving, drained, aborted):
                task.cancel()
            results = await asyncio.gather(serving, drained, aborted, return_exceptions=True)
    if second.is_set():
        raise Aborted("stopped at once by a second signal; what was running got no answer")
    for result in results:
        if isinstance(result, Exception):
            raise result


async def _drain(service: Service, asked: asyncio.Event, timeout: float) -> None:
    await asked.wait()
    if not await service.drain(timeout):
        service.engine.shut_down(drain=False)  # ends what still runs, with an error to each client
        await asyncio.wait({asyncio.ensure_future(service.idle.wait())}, timeout=_LAST_ANSWERS_SECONDS)


@contextmanager
def _signals() -> Iterator[tuple[asyncio.Event, asyncio.Event]]:
    """Events for the first and the second SIGTERM or SIGINT."""
    first, second = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def received() -> None:
        (second if first.is_set() else first).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, received)
    try:
        yield first, second
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
