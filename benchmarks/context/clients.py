"""Whom prompts are sent to: an engine loop in this process over the plan's own scheduler and executor, or a server."""

from __future__ import annotations

import asyncio
import json
import queue
import threading
import time
from collections import deque
from typing import NamedTuple, Protocol

import numpy as np
from tokenspeed.plans.reader import Plan
from tokenspeed.runtime.benchmark.http_stream import Server, events, request
from tokenspeed.runtime.disk_jobs import READERS, DiskJobs
from tokenspeed.runtime.disk_kv import open_store
from tokenspeed.runtime.engine import EngineLoop
from tokenspeed.runtime.executor import load_executor
from tokenspeed.runtime.kv_store import KvStore
from tokenspeed.runtime.protocol import (
    EngineCommand,
    EngineFailed,
    EngineNews,
    Rejected,
    SamplingParameters,
    Shutdown,
    StepNews,
    Submit,
    packed,
)
from tokenspeed.runtime.scheduling.ablation import POLICIES, without
from tokenspeed.runtime.scheduling.building import scheduler_of
from tokenspeed.runtime.scheduling.request import Request, SchedulerStats
from tokenspeed.runtime.scheduling.scheduler import Scheduler
from tokenspeed.runtime.scheduling.step import StepBatch
from tokenspeed.runtime.simulation.machine import VirtualMachine
from tokenspeed.runtime.simulation.step_times import StepTimes

LEAST_RECENTLY_USED = ("retention", "supersede")
"""Features of the policy that keep a session on the device although others came after it; without them, others drive it away."""

_RELOADED = "tokenspeed:reloaded_tokens_total"


class Reply(NamedTuple):
    """Seconds to the first token, tokens that were not computed, and those of them that came from the host."""

    seconds: float
    cached: int
    from_host: int


class Client(Protocol):
    def first_token(self, prompt: list[int], salt: str) -> Reply:
        """Ask for one token and wait for it."""
        ...

    def close(self) -> None: ...


class _Channel:
    """The engine's end of two queues."""

    def __init__(self) -> None:
        self.commands: queue.SimpleQueue[EngineCommand] = queue.SimpleQueue()
        self.news: queue.SimpleQueue[EngineNews] = queue.SimpleQueue()

    def receive(self, timeout: float | None = 0.0) -> list[EngineCommand]:
        try:
            found = [self.commands.get(block=timeout != 0.0, timeout=timeout)]
        except queue.Empty:
            return []
        while not self.commands.empty():
            found.append(self.commands.get())
        return found

    def send(self, news: EngineNews) -> None:
        self.news.put(news)


class InProcess:
    """A `Client` of an engine in this process: no HTTP, and no tokens on their way."""

    def __init__(self, plan: Plan, weights: str | None) -> None:
        scheduler = scheduler_of(plan.manifest, without(POLICIES["agentic"], LEAST_RECENTLY_USED))
        if not isinstance(scheduler, Scheduler):
            raise SystemExit("this measures plans for one rank")
        started = latest = time.perf_counter()
        self.phases: dict[str, float] = {}

        def report(phase: str) -> None:
            nonlocal latest
            self.phases[phase], latest = time.perf_counter() - latest, time.perf_counter()

        self.executor = load_executor(plan, weights, None, report, host_tier=True)
        self.load_seconds = time.perf_counter() - started
        self.phases["weights and tier"] = time.perf_counter() - latest
        self._asked = 0
        self._serve(scheduler)

    def _serve(self, scheduler: Scheduler, disk: DiskJobs | None = None) -> None:
        self._scheduler, self._channel = scheduler, _Channel()
        loop = EngineLoop(scheduler, self.executor, self._channel, (), disk=disk)
        self._thread = threading.Thread(target=loop.run, daemon=True)
        self._thread.start()

    def _stop(self) -> None:
        self._channel.commands.put(Shutdown())
        self._thread.join(60)

    def first_token(self, prompt: list[int], salt: str) -> Reply:
        self._asked += 1
        submit = Submit(str(self._asked), packed(prompt), SamplingParameters(max_tokens=1, temperature=0.0), salt=salt)
        reloaded = self._scheduler.stats().reloaded_tokens
        started = time.perf_counter()
        self._channel.commands.put(submit)
        while True:
            news = self._channel.news.get(timeout=300)
            if isinstance(news, (Rejected, EngineFailed)):
                raise SystemExit(f"the engine refused: {news.message}")
            for event in news.events if isinstance(news, StepNews) else ():
                if event.finish_reason == "error":
                    raise SystemExit(f"the request failed: {event.error}")
                if event.finish_reason is not None:
                    seconds = time.perf_counter() - started
                    return Reply(seconds, event.cached_tokens, self._scheduler.stats().reloaded_tokens - reloaded)

    def close(self) -> None:
        self._stop()
        self.executor.close()


class WithDisk(InProcess):
    """The same with a tier on disk. `restart` gives it a scheduler that knows of nothing but what is on disk, as a new process
    has one; weights stay where they are. `restored_seconds` is what finding that took, `bytes_per_second` the disk's rate, as
    the scheduler takes it to be."""

    def __init__(self, plan: Plan, weights: str | None, folder: str, most_bytes: int) -> None:
        self._manifest, self._folder, self._most_bytes = plan.manifest, folder, most_bytes
        self._disk: tuple[KvStore, DiskJobs] | None = None
        super().__init__(plan, weights)
        self.restart()

    @property
    def stats(self) -> SchedulerStats:
        return self._scheduler.stats()

    def restart(self) -> None:
        self._stop()
        self._close_disk()
        started = time.perf_counter()
        store = open_store(self._manifest, self._folder, self._most_bytes)
        self.bytes_per_second = store.bytes_per_second(READERS)
        scheduler = scheduler_of(self._manifest, without(POLICIES["agentic"], LEAST_RECENTLY_USED))
        assert isinstance(scheduler, Scheduler)
        scheduler.add_disk(store.places, self.bytes_per_second, store.units)
        self.restored_seconds = time.perf_counter() - started
        self._disk = store, DiskJobs(store, self.executor.host_block)
        self._serve(scheduler, self._disk[1])

    def close(self) -> None:
        self._stop()
        self._close_disk()
        self.executor.close()

    def _close_disk(self) -> None:
        if self._disk is not None:
            store, jobs = self._disk
            jobs.close()
            store.close()


class InVirtualTime:
    """A `Client` of the plan's scheduler alone: steps take what the plan predicts, and nothing is computed."""

    def __init__(self, plan: Plan) -> None:
        scheduler = scheduler_of(plan.manifest, without(POLICIES["agentic"], LEAST_RECENTLY_USED))
        if not isinstance(scheduler, Scheduler):
            raise SystemExit("this measures plans for one rank")
        self._scheduler, self._machine = scheduler, VirtualMachine(StepTimes(plan.manifest))
        self._now, self._asked = 0.0, 0

    def first_token(self, prompt: list[int], salt: str) -> Reply:
        scheduler, running = self._scheduler, deque[tuple[StepBatch, float]]()
        self._asked += 1
        reloaded, started = scheduler.stats().reloaded_tokens, self._now
        scheduler.tick(self._now)
        scheduler.submit(Request(str(self._asked), np.array(prompt, np.int32), max_tokens=1, salt=salt))
        while True:
            step = scheduler.schedule()
            if step is not None:
                running.append((step, self._machine.launch(step, self._now)))
            if step is None or len(running) == scheduler.max_in_flight:
                oldest, self._now = running.popleft()
                scheduler.tick(self._now)
                outcomes = scheduler.complete(oldest.step_id, np.zeros(len(oldest.logit_request_ids), np.int32))
                if outcomes:
                    return Reply(self._now - started, outcomes[0].cached_tokens, scheduler.stats().reloaded_tokens - reloaded)

    def close(self) -> None:
        pass


class OverHttp:
    """A `Client` of `tokenspeed-run`, whose metrics tell what came from the host."""

    def __init__(self, url: str, model: str) -> None:
        self._server, self._model = Server.parse(url), model

    def first_token(self, prompt: list[int], salt: str) -> Reply:
        before = asyncio.run(self._reloaded())
        reply = asyncio.run(self._ask(prompt, salt))
        return reply._replace(from_host=asyncio.run(self._reloaded()) - before)

    def close(self) -> None:
        pass

    async def _reloaded(self) -> int:
        """Tokens brought back from the host so far."""
        async with request(self._server, "GET", "/metrics") as answer:
            lines = (await answer.whole()).decode().splitlines()
        return sum(int(float(line.split()[-1])) for line in lines if line.startswith(_RELOADED))

    async def _ask(self, prompt: list[int], salt: str) -> Reply:
        asked = {
            "model": self._model,
            "prompt": prompt,
            "max_tokens": 1,
            "temperature": 0,
            "cache_salt": salt,
            "ignore_eos": True,
        }
        body = json.dumps(asked | {"stream": True, "stream_options": {"include_usage": True}}).encode()
        started, seconds, cached = time.perf_counter(), 0.0, 0
        async with request(self._server, "POST", "/v1/completions", body) as answer:
            if answer.status != 200:
                raise SystemExit(f"the server answered {answer.status}: {(await answer.whole())[:300]!r}")
            async for event in events(answer.body):
                if event == b"[DONE]":
                    break
                told = json.loads(event)
                seconds = seconds or time.perf_counter() - started
                usage = told.get("usage") or {}
                cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", cached)
        return Reply(seconds, cached, 0)
