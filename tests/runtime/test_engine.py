"""The engine loop over the real scheduler, with a fake executor and a channel that is a list."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from tokenspeed.runtime.device.errors import DeviceLost
from tokenspeed.runtime.engine import BusyTime, EngineLoop
from tokenspeed.runtime.executor_interface import RowsFailed
from tokenspeed.runtime.protocol import (
    Abort,
    Accepted,
    Drained,
    EngineCommand,
    EngineFailed,
    EngineNews,
    Rejected,
    SamplingParameters,
    Shutdown,
    StepNews,
    Submit,
    TokenEvent,
    packed,
)
from tokenspeed.runtime.scheduling.batch import launch
from tokenspeed.runtime.scheduling.kv import KvManager
from tokenspeed.runtime.scheduling.prefix import PrefixChain
from tokenspeed.runtime.scheduling.request import Outcome, Request, SchedulerLimits
from tokenspeed.runtime.scheduling.scheduler import Scheduler
from tokenspeed.runtime.scheduling.step import IntArray, StepBatch, empty_step

from .fake_executor import EchoExecutor

END = 1
STEP = msgspec.structs.replace(empty_step(0), token_ids=np.zeros(1, np.int32))
COPIES = empty_step(0)
LIMITS = SchedulerLimits(max_rows=16, max_decode_rows=4, max_sequences=4, prefill_chunk=8, max_waiting=4, max_context=64)


class ListChannel:
    def __init__(self) -> None:
        self.commands: queue.Queue[EngineCommand] = queue.Queue()
        self.news: queue.Queue[EngineNews] = queue.Queue()
        self.waits = 0

    def receive(self, timeout: float | None = 0.0) -> list[EngineCommand]:
        self.waits += 1
        try:
            commands = [self.commands.get(block=timeout != 0, timeout=20 if timeout is None else timeout or None)]
        except queue.Empty:
            return []
        while not self.commands.empty():
            commands.append(self.commands.get_nowait())
        return commands

    def send(self, news: EngineNews) -> None:
        self.news.put(news)


class Engine:
    """An engine loop in a thread; `until` collects news up to one of a kind."""

    def __init__(self, *, overlap: bool, kind: type[Scheduler] = Scheduler, host_blocks: int = 0) -> None:
        self.executor, self.channel = EchoExecutor(), ListChannel()
        self.scheduler = kind(LIMITS, KvManager(32, 4, 4, "test", host_blocks=host_blocks))
        self.loop = EngineLoop(self.scheduler, self.executor, self.channel, (END,), overlap=overlap, roofline=lambda _step: 0.5)
        self.result: bool | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self.result = self.loop.run()

    def submit(
        self,
        name: str,
        tokens: tuple[int, ...],
        max_tokens: int = 4,
        *,
        ignore_eos: bool = False,
        stop_tokens: tuple[int, ...] = (),
        min_tokens: int = 0,
        logprobs: int | None = None,
    ) -> None:
        sampling = SamplingParameters(
            max_tokens=max_tokens, ignore_eos=ignore_eos, stop_tokens=stop_tokens, min_tokens=min_tokens, logprobs=logprobs
        )
        self.channel.commands.put(Submit(name, packed(tokens), sampling))

    def events(self, *names: str) -> dict[str, list[TokenEvent]]:
        """Token events until all of these sequences have ended."""
        events: dict[str, list[TokenEvent]] = {name: [] for name in names}
        while not all(found and found[-1].finish_reason for found in events.values()):
            news = self.channel.news.get(timeout=20)
            if isinstance(news, StepNews):
                for event in news.events:
                    events.setdefault(event.request_id, []).append(event)
        return events

    def next(self, kind: type[EngineNews]) -> EngineNews:
        while not isinstance(news := self.channel.news.get(timeout=20), kind):
            pass
        return news

    def shut_down(self, *, drain: bool = True) -> None:
        self.channel.commands.put(Shutdown(drain))
        self.thread.join(20)
        assert not self.thread.is_alive()


@pytest.fixture(params=[False, True], ids=["normal", "overlap"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = Engine(overlap=request.param)
    yield engine
    engine.executor.gate.set()
    if engine.thread.is_alive():
        engine.shut_down(drain=False)
    engine.scheduler.check_integrity()


def tokens(events: list[TokenEvent]) -> list[int]:
    return [token for event in events for token in event.tokens]


def test_sequences_run_to_their_length(engine: Engine) -> None:
    for n in range(4):
        engine.submit(f"r{n}", (10 + n, 20, 30), max_tokens=5)
    events = engine.events("r0", "r1", "r2", "r3")
    for n in range(4):
        assert tokens(events[f"r{n}"]) == [10 + n, 20, 30, 10 + n, 20]
        last = events[f"r{n}"][-1]
        assert last.finish_reason == "length" and last.stop_token is None
        assert last.queue_seconds >= 0 and last.prefill_seconds > 0 and last.decode_seconds > 0
    assert len(engine.executor.threads) == 1


def test_a_stop_token_ends_and_is_no_output(engine: Engine) -> None:
    engine.submit("r", (10, END, 30), max_tokens=9)
    events = engine.events("r")["r"]
    assert tokens(events) == [10]
    assert (events[-1].finish_reason, events[-1].stop_token) == ("stop", END)


def test_ignore_eos_and_own_stop_tokens(engine: Engine) -> None:
    engine.submit("r", (10, END, 30), max_tokens=9, ignore_eos=True, stop_tokens=(30,))
    events = engine.events("r")["r"]
    assert tokens(events) == [10, END]
    assert events[-1].stop_token == 30


def test_min_tokens_come_before_a_stop(engine: Engine) -> None:
    engine.submit("r", (10, END, 30), max_tokens=9, min_tokens=3)
    assert tokens(engine.events("r")["r"]) == [10, END, 30, 10]


def test_logprobs_go_with_their_tokens(engine: Engine) -> None:
    engine.submit("plain", (10, 20), max_tokens=2)
    engine.submit("scored", (11, 21), max_tokens=3, logprobs=1)
    events = engine.events("plain", "scored")
    assert [item.token for event in events["scored"] for item in event.logprobs] == [11, 21, 11]
    assert not any(event.logprobs for event in events["plain"])


def test_refusals_and_acceptance(engine: Engine) -> None:
    engine.submit("long", tuple(range(64)))
    rejected = engine.next(Rejected)
    assert isinstance(rejected, Rejected) and (rejected.request_id, rejected.code) == ("long", "prompt_too_long")
    engine.submit("fine", (5,))
    accepted = engine.next(Accepted)
    assert isinstance(accepted, Accepted) and accepted.request_id == "fine"


def test_a_request_that_cannot_be_admitted_is_refused_alone(engine: Engine) -> None:
    engine.executor.refused = 99
    engine.submit("fine", (10, 20), max_tokens=3)
    engine.submit("wrong", (10, 99))
    rejected = engine.next(Rejected)
    assert isinstance(rejected, Rejected) and (rejected.request_id, rejected.code) == ("wrong", "invalid_request")
    assert tokens(engine.events("fine")["fine"]) == [10, 20, 10]


def test_queue_full(engine: Engine) -> None:
    engine.executor.gate.clear()
    for n in range(12):
        engine.submit(f"r{n}", (10, 20), max_tokens=2)
    engine.executor.gate.set()
    rejected = engine.next(Rejected)
    assert isinstance(rejected, Rejected) and rejected.code == "queue_full"


def test_abort_frees_everything(engine: Engine) -> None:
    engine.executor.step_seconds = 0.005
    engine.submit("r", (10, 20), max_tokens=60)
    engine.next(StepNews)
    engine.channel.commands.put(Abort("r"))
    assert engine.events("r")["r"][-1].finish_reason == "abort"
    engine.submit("other", (10,), max_tokens=1)
    while (news := engine.next(StepNews)) and isinstance(news, StepNews) and not news.events:
        pass
    engine.shut_down()
    assert engine.scheduler.stats().running == 0 and engine.scheduler.stats().kv_usage == 0


def test_only_the_failed_rows_end_with_an_error(engine: Engine) -> None:
    engine.executor.poison = 66
    engine.submit("good", (10, 20), max_tokens=6)
    engine.submit("bad", (66, 20), max_tokens=6)
    events = engine.events("good", "bad")
    assert events["bad"][-1].finish_reason == "error" and "not numbers" in events["bad"][-1].error
    assert tokens(events["good"]) == [10, 20] * 3 and events["good"][-1].finish_reason == "length"


def test_a_failed_step_ends_its_requests_only(engine: Engine) -> None:
    engine.executor.failures = [RuntimeError("out of luck")]
    engine.submit("bad", (10, 20))
    events = engine.events("bad")["bad"]
    assert events[-1].finish_reason == "error" and events[-1].error == "out of luck"
    engine.submit("good", (10, 20), max_tokens=2)
    assert tokens(engine.events("good")["good"]) == [10, 20]


def test_rows_failed_without_a_result_fails_the_step(engine: Engine) -> None:
    engine.executor.failures = [RowsFailed(("bad",), "lost")]
    engine.submit("bad", (10, 20))
    assert engine.events("bad")["bad"][-1].finish_reason == "error"


def test_step_after_step_failing_stops_the_engine(engine: Engine) -> None:
    engine.executor.failures = [RuntimeError("broken device")] * 100
    for n in range(4):
        engine.submit(f"r{n}", (10,))
        engine.events(f"r{n}") if n < 2 else None
    failed = engine.next(EngineFailed)
    assert isinstance(failed, EngineFailed) and "broken device" in failed.message
    engine.thread.join(20)
    assert engine.result is False


def test_a_lost_device_stops_the_engine_at_once(engine: Engine) -> None:
    engine.executor.failures = [DeviceLost("The device is lost to this process.", fix="start the server again")]
    engine.submit("r", (10, 20))
    assert engine.events("r")["r"][-1].finish_reason == "error"
    failed = engine.next(EngineFailed)
    assert isinstance(failed, EngineFailed) and "start the server again" in failed.message
    engine.thread.join(20)
    assert engine.result is False


def test_draining_finishes_what_runs_and_takes_nothing_new(engine: Engine) -> None:
    engine.executor.step_seconds = 0.002
    engine.submit("r", (10, 20), max_tokens=20)
    engine.next(StepNews)
    engine.channel.commands.put(Shutdown(drain=True))
    engine.submit("late", (10, 20))
    rejected = engine.next(Rejected)
    assert isinstance(rejected, Rejected) and rejected.code == "draining"
    assert engine.events("r")["r"][-1].finish_reason == "length"
    assert isinstance(engine.next(Drained), Drained)
    engine.thread.join(20)
    assert engine.result is True


def test_shutdown_without_draining_aborts(engine: Engine) -> None:
    engine.executor.step_seconds = 0.005
    engine.submit("r", (10, 20), max_tokens=60)
    engine.next(StepNews)
    engine.channel.commands.put(Shutdown(drain=False))
    assert engine.events("r")["r"][-1].finish_reason == "abort"
    assert isinstance(engine.next(Drained), Drained)


def test_statistics_add_up(engine: Engine) -> None:
    for n in range(3):
        engine.submit(f"r{n}", (10, 20, 30, 40, 50, 60), max_tokens=3)
        engine.events(f"r{n}")
    engine.shut_down()
    stats = engine.scheduler.stats()
    assert (stats.prompt_tokens, stats.generation_tokens) == (18, 9)
    assert stats.prefix_hits == 8


class Sleeper(Scheduler):
    """Whose requests wait for `wake` to come."""

    wake = told = 0.0
    asked = 0

    def tick(self, seconds: float) -> None:
        self.told = seconds
        super().tick(seconds)

    @property
    def next_wake(self) -> float | None:
        return self.wake if self.wake > self.told else None

    def schedule(self) -> StepBatch | None:
        self.asked += 1
        return None if self.wake > self.told else super().schedule()


@pytest.mark.parametrize("overlap", [False, True])
def test_requests_that_wait_for_time_to_pass_get_it_without_spinning(overlap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenspeed.runtime.engine._BLOCKED_WAITS", 2)
    engine = Engine(overlap=overlap, kind=Sleeper)
    assert isinstance(engine.scheduler, Sleeper)
    engine.scheduler.wake = time.monotonic() + 0.3
    engine.submit("r", (10, 20), max_tokens=2)
    assert tokens(engine.events("r")["r"]) == [10, 20]
    engine.shut_down()
    assert time.monotonic() > engine.scheduler.wake and engine.scheduler.asked < 40


class Copier(Scheduler):
    """Whose every other step has no rows."""

    steps = 0

    def schedule(self) -> StepBatch | None:
        self.steps += 1
        if self.steps % 2 and self._state.requests:
            return launch(self._state, np.empty(0, np.intp), [])
        return super().schedule()


@pytest.mark.parametrize("overlap", [False, True])
def test_steps_without_rows_are_run_and_bring_no_tokens(overlap: bool) -> None:
    engine = Engine(overlap=overlap, kind=Copier)
    engine.submit("r", (10, 20), max_tokens=4)
    assert tokens(engine.events("r")["r"]) == [10, 20, 10, 20]
    engine.shut_down()
    rows = [batch.rows for batch in engine.executor.batches]
    assert rows.count(0) >= 3 and engine.scheduler.stats().steps == len(rows)
    engine.scheduler.check_integrity()


class Diary(Scheduler):
    """Writes down what it is called for, in order."""

    def __init__(self, limits: SchedulerLimits, kv: KvManager) -> None:
        super().__init__(limits, kv)
        self.entries: list[str] = []
        self.times: list[float] = []

    def tick(self, seconds: float) -> None:
        self.times.append(seconds)
        self.entries.append("tick")
        super().tick(seconds)

    def submit(self, request: Request, chain: PrefixChain | None = None) -> None:
        self.entries.append("submit")
        super().submit(request, chain)

    def schedule(self) -> StepBatch | None:
        self.entries.append("schedule")
        return super().schedule()

    def complete(self, step_id: int, tokens: Mapping[str, int] | Sequence[int] | IntArray) -> list[Outcome]:
        self.entries.append("complete")
        return super().complete(step_id, tokens)


@pytest.mark.parametrize("overlap", [False, True])
def test_the_scheduler_is_told_the_time_before_all_that_happens(overlap: bool) -> None:
    engine = Engine(overlap=overlap, kind=Diary)
    for name in ("a", "b"):
        engine.submit(name, (10, 20), max_tokens=3)
    engine.events("a", "b")
    engine.shut_down()
    assert isinstance(engine.scheduler, Diary)
    entries = engine.scheduler.entries
    assert all(before == "tick" for before, after in pairwise(entries) if after == "complete")
    assert all(before in ("tick", "submit") for before, after in pairwise(entries) if after in ("submit", "schedule"))
    assert engine.scheduler.times == sorted(engine.scheduler.times)


def test_time_with_steps_in_flight_and_at_the_roofline_is_counted(engine: Engine) -> None:
    engine.executor.step_seconds = 0.01
    engine.submit("r", (10, 20), max_tokens=5)
    engine.next(Accepted)
    while isinstance(news := engine.next(StepNews), StepNews) and not any(event.finish_reason for event in news.events):
        pass
    assert isinstance(news, StepNews) and 0.01 * 5 <= news.stats.busy_seconds < 5
    assert news.stats.roofline_seconds == 5 * 0.5


def test_busy_time() -> None:
    busy = BusyTime()
    for begins, now in ((True, 1), (True, 2), (False, 4), (False, 5), (True, 7), (False, 8)):
        busy.begin(STEP, now) if begins else busy.end(STEP, now)
    busy.begin(COPIES, 9)
    busy.begin(STEP, 10)
    assert (busy.seconds(10), busy.seconds(13)) == (5, 8)
    busy.end(COPIES, 14)
    assert busy.seconds(15) == 10
    busy.end(STEP, 15)
    busy.begin(COPIES, 16)
    assert busy.seconds(17) == 10
    busy.end(COPIES, 18)
    assert busy.seconds(19) == 10


@pytest.mark.parametrize("overlap", [False, True])
def test_an_engine_without_requests_saves_blocks_and_then_waits(overlap: bool) -> None:
    engine = Engine(overlap=overlap, host_blocks=32)
    engine.scheduler._state.copied_blocks = lambda work: 3 if work is None else 0
    engine.submit("r", tuple(range(10, 40)), max_tokens=3)
    engine.events("r")
    while isinstance(news := engine.next(StepNews), StepNews) and news.stats.offloaded_tokens < 32:
        pass
    time.sleep(0.02)
    copying = [batch for batch in engine.executor.batches if not batch.rows]
    assert [sum(len(copies.device) for copies in batch.saves) for batch in copying] == [3, 3, 2]
    engine.submit("again", tuple(range(10, 40)), max_tokens=3)
    assert engine.events("again")["again"][-1].finish_reason == "length"
    assert engine.channel.waits < 40, "it asks on and on"
    engine.shut_down()


def test_overlap_schedules_ahead() -> None:
    engine = Engine(overlap=True)
    engine.executor.step_seconds = 0.002
    engine.submit("r", (10, 20), max_tokens=10)
    engine.events("r")
    engine.shut_down()
    assert any(-1 in batch.token_ids for batch in engine.executor.batches)
