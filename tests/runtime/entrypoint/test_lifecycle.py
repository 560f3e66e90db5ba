"""Clients that leave, engines that die, servers that drain: every accepted request ends, and nothing stays behind."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator

import httpx
import openai
import pytest
from openai import OpenAI
from tokenspeed.runtime.entrypoint.access import ApiKeys
from tokenspeed.runtime.entrypoint.engine_client import EngineClient, Sockets
from tokenspeed.runtime.entrypoint.http_server import Aborted, serve
from tokenspeed.runtime.entrypoint.listening import listen, url
from tokenspeed.runtime.entrypoint.metrics import Metrics
from tokenspeed.runtime.entrypoint.service import Service

from .live_server import NAME, EngineThread, LiveServer, live_server, tiny_model

LONG = {"model": NAME, "prompt": "hello world 😀", "max_tokens": 200}


@pytest.fixture(params=[True, False], ids=["overlap", "normal"])
def own(request: pytest.FixtureRequest) -> Iterator[LiveServer]:
    with live_server(overlap=request.param) as server:
        server.executor.step_seconds = 0.005
        yield server


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def nothing_left(server: LiveServer) -> bool:
    stats = server.in_loop(lambda: server.client.stats)
    return server.in_loop(lambda: server.client.open_sequences) == 0 and (stats.running, stats.kv_usage) == (0, 0.0)


def metric(server: LiveServer, line: str) -> float:
    text = httpx.get(f"{server.url}/metrics").text
    return sum(float(found.rpartition(" ")[2]) for found in text.splitlines() if found.startswith(line))


def test_a_client_that_leaves_a_stream_frees_its_blocks(own: LiveServer) -> None:
    with httpx.stream("POST", f"{own.url}/v1/completions", json=LONG | {"stream": True, "n": 2}) as answer:
        next(answer.iter_raw())
    until(lambda: nothing_left(own))
    assert metric(own, 'tokenspeed:request_success_total{finished_reason="abort"') == 2


def test_a_client_that_leaves_while_waiting_frees_its_blocks(own: LiveServer) -> None:
    own.executor.step_seconds = 0.05
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{own.url}/v1/completions", json=LONG, timeout=0.3)
    until(lambda: nothing_left(own))
    assert own.in_loop(lambda: own.service.idle.is_set())


def test_a_stop_string_ends_the_work_too(own: LiveServer) -> None:
    answer = httpx.post(f"{own.url}/v1/completions", json=LONG | {"stop": "world"})
    assert answer.json()["choices"][0]["text"] == "hello "
    until(lambda: nothing_left(own))


def test_when_the_engine_dies_every_request_ends(own: LiveServer) -> None:
    with OpenAI(base_url=f"{own.url}/v1", api_key="-", max_retries=0, timeout=20) as client:
        stream = client.completions.create(**LONG, stream=True)
        next(iter(stream))
        own.executor.failures = [RuntimeError("device lost")] * 1000
        with pytest.raises(openai.APIError, match="device lost"):
            list(stream)
        for _ in range(2):
            with pytest.raises(openai.InternalServerError):
                client.completions.create(**LONG)
        until(lambda: httpx.get(f"{own.url}/health").status_code == 503)
        assert httpx.get(f"{own.url}/ready").json() == {"status": "failed"}
        with pytest.raises(openai.InternalServerError, match="engine failed"):
            client.completions.create(**LONG)
    assert own.in_loop(lambda: own.client.open_sequences) == 0


def test_engine_failure_reaches_all_open_requests(own: LiveServer) -> None:
    from tokenspeed.runtime.protocol import EngineFailed

    own.executor.gate.clear()
    with httpx.stream("POST", f"{own.url}/v1/completions", json=LONG | {"stream": True}, timeout=20) as answer:
        own.in_loop(lambda: own.client.fail(EngineFailed("killed by the test\nwith details", 1)))
        text = answer.read().decode()
    assert '"message":"the engine failed: killed by the test"' in text and text.endswith("data: [DONE]\n\n")


def test_only_the_bad_request_fails(own: LiveServer) -> None:
    own.executor.poison = 300
    bad = httpx.post(f"{own.url}/v1/completions", json={"prompt": [300, 5], "max_tokens": 3})
    assert bad.status_code == 500 and "not numbers" in bad.json()["error"]["message"]
    good = httpx.post(f"{own.url}/v1/completions", json={"prompt": [5, 6], "max_tokens": 3})
    assert good.status_code == 200
    assert httpx.get(f"{own.url}/health").status_code == 200


def test_draining_refuses_new_requests_and_finishes_old_ones(own: LiveServer) -> None:
    with httpx.stream("POST", f"{own.url}/v1/completions", json=LONG | {"stream": True}, timeout=20) as answer:
        parts = answer.iter_raw()
        next(parts)
        own.in_loop(lambda: setattr(own.service, "draining", True))
        refused = httpx.post(f"{own.url}/v1/completions", json=LONG)
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "draining"
        assert httpx.get(f"{own.url}/ready").json() == {"status": "draining"}
        assert httpx.get(f"{own.url}/health").status_code == 200
        text = b"".join(parts).decode()
    assert '"finish_reason":"length"' in text and text.endswith("data: [DONE]\n\n")


class Served:
    """`http_server.serve` in this thread, signals and all, with `act` played by a client beside it."""

    def __init__(self, drain_timeout: float, step_seconds: float) -> None:
        self.drain_timeout, self.step_seconds = drain_timeout, step_seconds
        self.text = ""
        self.serving_seconds = 0.0

    async def client(self, address: str, signals: int) -> None:
        async with (
            httpx.AsyncClient(timeout=20) as client,
            client.stream("POST", f"{address}/v1/completions", json=LONG | {"stream": True}) as answer,
        ):
            sent = 0
            async for part in answer.aiter_text():
                self.text += part
                if sent < signals:
                    sent += 1
                    os.kill(os.getpid(), signal.SIGTERM)

    async def run(self, signals: int) -> None:
        sockets = Sockets()
        engine = EngineThread(sockets)
        engine.executor.step_seconds = self.step_seconds
        client = EngineClient(sockets)
        service = Service(tiny_model(), client, ApiKeys(()), Metrics(NAME, lambda: client.stats))
        listening = asyncio.create_task(client.listen())
        await client.wait_ready()
        server = listen("127.0.0.1", 0)
        asking = asyncio.create_task(self.client(url(server), signals))
        start = time.monotonic()
        try:
            await serve(service, server, self.drain_timeout)
            await asking
        finally:
            self.serving_seconds = time.monotonic() - start
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            client.shut_down(drain=False)
            await asyncio.wait_for(listening, 10)
            engine.stop()
            sockets.close()


def test_sigterm_lets_running_requests_finish() -> None:
    served = Served(drain_timeout=20, step_seconds=0.002)
    asyncio.run(served.run(signals=1))
    assert '"finish_reason":"length"' in served.text and served.text.endswith("data: [DONE]\n\n")


def test_sigterm_ends_what_does_not_finish_in_time() -> None:
    served = Served(drain_timeout=0.1, step_seconds=0.05)
    asyncio.run(served.run(signals=1))
    assert "shutting down" in served.text and served.text.endswith("data: [DONE]\n\n")


def test_a_second_signal_aborts() -> None:
    served = Served(drain_timeout=20, step_seconds=0.05)
    with pytest.raises(Aborted):
        asyncio.run(served.run(signals=2))
    assert served.serving_seconds < 5


def test_requests_before_the_engine_is_ready_are_told_so() -> None:
    async def ask() -> None:
        sockets = Sockets()
        client = EngineClient(sockets)
        with pytest.raises(Exception, match="still loading"):
            client.open([])
        sockets.close()

    asyncio.run(ask())
