"""Sessions that take turns on a machine too small for both: what they say is what they would say on a large one."""

from __future__ import annotations

import threading
from math import inf
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tokenspeed.plans.host_tier import HOST_LINK
from tokenspeed.plans.schema import Manifest, Rate
from tokenspeed.runtime.disk_jobs import DiskJobs
from tokenspeed.runtime.engine import EngineLoop
from tokenspeed.runtime.executor import load_executor
from tokenspeed.runtime.kv_store import KvStore
from tokenspeed.runtime.protocol import EngineStats, SamplingParameters, Shutdown, StepNews, Submit, packed
from tokenspeed.runtime.scheduling.building import scheduler_of
from tokenspeed.runtime.scheduling.scheduler import Scheduler

from .llama_plan import Llama, MemoryPlan, plan_of, random_sources, write_safetensors
from .test_engine import ListChannel

TURNS, PROMPT, MADE = 3, 80, 6
LARGE, SMALL = 128, 32


def plan_with(blocks: int, host_blocks: int) -> MemoryPlan:
    shape = Llama(blocks=blocks, row_padding="bucket")
    kv = msgspec.structs.replace(shape.manifest().kv, host_blocks=host_blocks)
    rates = shape.manifest().performance.rates | {HOST_LINK: Rate(value=1e9, unit="B/s", source="test", basis="nominal")}
    return plan_of(shape, kv=kv, performance=msgspec.structs.replace(shape.manifest().performance, rates=rates))


class Served:
    """An engine loop over the plan's own scheduler and executor, in a thread."""

    def __init__(self, plan: MemoryPlan, weights: Path, *, overlap: bool, store: KvStore | None = None) -> None:
        manifest: Manifest = plan.manifest
        self.executor = load_executor(plan, str(weights), None, lambda _phase: None, host_tier=True)
        scheduler = scheduler_of(manifest)
        assert isinstance(scheduler, Scheduler)
        self.scheduler, self.channel = scheduler, ListChannel()
        self.store, self.disk = store, None if store is None else DiskJobs(store, self.executor.host_block)
        if store is not None:
            scheduler.add_disk(store.places, inf, store.units)
        loop = EngineLoop(scheduler, self.executor, self.channel, (), overlap=overlap, disk=self.disk)
        self.thread = threading.Thread(target=loop.run, daemon=True)
        self.thread.start()
        self.stats = EngineStats()

    def turn(self, name: str, session: str, prompt: list[int], salt: str = "") -> list[int]:
        """The tokens of one request, which has the machine for itself."""
        sampling = SamplingParameters(max_tokens=MADE, temperature=0.0)
        self.channel.commands.put(Submit(name, packed(prompt), sampling, session_id=session, salt=salt))
        made: list[int] = []
        while True:
            news = self.channel.news.get(timeout=60)
            if isinstance(news, StepNews):
                self.stats = news.stats
                made += [token for event in news.events for token in event.tokens]
                if any(event.finish_reason for event in news.events):
                    return made

    def close(self) -> None:
        self.channel.commands.put(Shutdown())
        self.thread.join(60)
        self.scheduler.check_integrity()
        if self.store is not None and self.disk is not None:
            self.disk.close()
            self.store.close()
        self.executor.close()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_safetensors(tmp_path_factory.mktemp("weights") / "model.safetensors", random_sources(Llama()))


def conversations(served: Served) -> list[list[int]]:
    """What two sessions are told in turns; each turn's prompt is all that was said, and something new."""
    random = np.random.default_rng(5)
    said = [random.integers(0, 96, PROMPT).tolist() for _ in range(2)]
    for turn in range(TURNS):
        for session in range(2):
            said[session] += served.turn(f"{session}.{turn}", str(session), said[session]) + random.integers(0, 96, 4).tolist()
    served.close()
    return said


@pytest.fixture(scope="module")
def expected(weights: Path) -> tuple[list[list[int]], int]:
    """What is said on a machine that holds all, and how many tokens were found there."""
    large = Served(plan_with(LARGE, 0), weights, overlap=True)
    return conversations(large), large.scheduler.stats().prefix_hits


@pytest.mark.parametrize("overlap", [False, True])
def test_sessions_come_back_from_the_host(weights: Path, expected: tuple[list[list[int]], int], overlap: bool) -> None:
    said, hits = expected
    small = Served(plan_with(SMALL, 64), weights, overlap=overlap)
    assert conversations(small) == said
    told = small.scheduler.stats()
    assert told.reloaded_tokens >= 2 * 64 and told.offloaded_tokens >= 2 * 64 and told.prefix_hits == hits


def test_without_a_tier_they_are_computed_again(weights: Path, expected: tuple[list[list[int]], int]) -> None:
    small = Served(plan_with(SMALL, 0), weights, overlap=True)
    assert conversations(small) == expected[0] and small.scheduler.stats().prefix_hits < expected[1]
