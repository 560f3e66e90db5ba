"""The engine loop: commands to the scheduler, steps to the executor, news to the entrypoint."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from ..plans.errors import UsageError
from .device.errors import DeviceLost
from .engine_sequence import EngineSequence
from .executor_interface import RowsFailed, Started, StepExecutor, StepResult
from .protocol import (
    Abort,
    Accepted,
    CloseSession,
    Drained,
    EndTurn,
    EngineCommand,
    EngineFailed,
    EngineNews,
    EngineStats,
    Rejected,
    Shutdown,
    StepNews,
    Submit,
    TokenEvent,
    TokenLogprob,
)
from .scheduling.disk_tier import DiskJob
from .scheduling.errors import RequestRefused
from .scheduling.request import Outcome, Request, SchedulerStats, TurnEnd
from .scheduling.step import IntArray, SlotAdmission, Step

_FAILED_STEPS_IN_A_ROW = 3
_BLOCKED_WAIT_SECONDS, _BLOCKED_WAITS = 0.01, 1000
_LONGEST_WAIT_SECONDS = 1.0
_DISK_WAIT_SECONDS, _FLUSH_SECONDS = 0.002, 3.0

_OF_SCHEDULER = tuple(name for name in EngineStats.__struct_fields__ if name in SchedulerStats.__struct_fields__)

Admission = tuple[SlotAdmission, EngineSequence]

StepKind = TypeVar("StepKind", bound=Step)
Scheduled = TypeVar("Scheduled", bound=Step, covariant=True)
Waited = TypeVar("Waited")


class StepScheduler(Protocol[Scheduled]):
    """What the engine asks of a scheduler; scheduling/scheduler.py and scheduling/groups.py are the real ones."""

    def submit(self, request: Request, /) -> None: ...

    def tick(self, seconds: float) -> None: ...

    def end_turn(self, session_id: str, end: TurnEnd) -> None: ...

    def close_session(self, session_id: str) -> None: ...

    def abort(self, request_id: str) -> Outcome | None: ...

    def schedule(self) -> Scheduled | None: ...

    def complete(self, step_id: int, tokens: IntArray) -> list[Outcome]: ...

    def fail(self, step_id: int) -> list[Outcome]: ...

    @property
    def has_work(self) -> bool: ...

    @property
    def next_wake(self) -> float | None: ...

    @property
    def max_in_flight(self) -> int: ...

    def disk_jobs(self) -> list[DiskJob]: ...

    def disk_done(self, number: int, well: bool, /) -> None: ...

    def stats(self) -> SchedulerStats: ...


class DiskQueue(Protocol):
    """Does jobs of the tier on disk in the background; disk_jobs.py is the real one."""

    @property
    def busy(self) -> bool: ...

    def submit(self, jobs: Iterable[DiskJob], /) -> None: ...

    def done(self) -> list[tuple[int, bool]]: ...


class Channel(Protocol):
    def receive(self, timeout: float | None = 0.0) -> list[EngineCommand]: ...

    def send(self, news: EngineNews) -> None: ...


class EngineStuck(RuntimeError):
    """The engine cannot go on; the message says why."""


class EngineLoop(Generic[StepKind]):
    """Runs until it is told to shut down. `end_tokens` are the model's; `overlap` schedules a step while another runs. `roofline`
    gives the least seconds that a step's work can take on the plan's machine.
    `disk` does the jobs of the scheduler's tier on disk.

    One thread calls `run`; the executor is called from that thread or, with `overlap`, from one thread of its own.
    """

    def __init__(
        self,
        scheduler: StepScheduler[StepKind],
        executor: StepExecutor[StepKind],
        channel: Channel,
        end_tokens: tuple[int, ...],
        *,
        overlap: bool = True,
        roofline: Callable[[StepKind], float] | None = None,
        disk: DiskQueue | None = None,
    ) -> None:
        self._scheduler, self._executor, self._channel = scheduler, executor, channel
        self._end_tokens = end_tokens
        self._overlap = overlap
        self._sequences: dict[str, EngineSequence] = {}
        self._draining = False
        self._failed_steps = 0
        self._roofline, self._roofline_seconds, self._busy = roofline, 0.0, BusyTime()
        self._disk, self._awaits_disk = disk, False
        self._began = self._waited = 0.0  # when `run` was called, and for how long it waited since
        self._nothing = False  # nothing is in flight, and there was nothing to schedule
        self._blocked = 0  # times in a row that there was work, no step in flight, and nothing to schedule

    def run(self) -> bool:
        """Serve until Shutdown; then tell Drained and return True. False: something failed for good, and was told."""
        self._began = time.monotonic()
        try:
            if self._overlap:
                self.overlap_loop()
            else:
                self.normal_loop()
            self._flush()
        except Exception as error:  # the process boundary: whatever it is, the entrypoint must hear of it
            self._channel.send(EngineFailed(f"{type(error).__name__}: {error}", 1))
            return False
        self._channel.send(Drained())
        return True

    def normal_loop(self) -> None:
        while not self._finished:
            self._take_commands(idle=True)
            batch = self._schedule(idle=True)
            if batch is not None:
                self._busy.begin(batch, time.monotonic())
                self._complete(batch, self._waiting(self._executed, batch, self._admitted(batch)))

    def overlap_loop(self) -> None:
        """Step N+1 is scheduled and queued behind step N while N runs; a stop found in N discards one token of N+1. In a pipeline
        as many steps run as it has stages."""
        running: deque[tuple[StepKind, Future[Started | Exception]]] = deque()
        with ThreadPoolExecutor(1, "executor") as thread:
            while not self._finished:
                self._take_commands(idle=not running)
                batch = self._schedule(idle=not running)
                if batch is not None:
                    self._busy.begin(batch, time.monotonic())
                    running.append((batch, thread.submit(self._execute, batch, self._admitted(batch))))
                if running and (batch is None or len(running) == self._scheduler.max_in_flight):
                    oldest, launched = running.popleft()
                    self._complete(oldest, self._waiting(_launched_result, launched))

    def _waiting(self, wait: Callable[..., Waited], *arguments: Any) -> Waited:
        """What `wait` gives; its time is none of the loop's own."""
        start = time.monotonic()
        try:
            return wait(*arguments)
        finally:
            self._waited += time.monotonic() - start

    @property
    def _finished(self) -> bool:
        return self._draining and not self._scheduler.has_work

    def _schedule(self, *, idle: bool) -> StepKind | None:
        batch = self._scheduler.schedule()
        self._nothing = idle and batch is None
        if self._disk is not None:
            self._disk.submit(self._scheduler.disk_jobs())
            self._awaits_disk = self._nothing and self._disk.busy
        stuck = self._nothing and self._scheduler.has_work and not self._awaits_disk
        self._blocked = self._blocked + 1 if stuck else 0
        if self._blocked > _BLOCKED_WAITS and self._scheduler.next_wake is None:
            raise EngineStuck("requests are waiting, but no step can be scheduled")
        return batch

    def _take_commands(self, *, idle: bool) -> None:
        """Take what has arrived; with `idle` (no step in flight) and nothing to run, wait for something to arrive."""
        commands = self._waiting(self._channel.receive, self._patience()) if idle else self._channel.receive(0.0)
        self._scheduler.tick(time.monotonic())
        ended = [event for command in commands for event in self._take(command)]
        if self._end_jobs() or ended:
            self._tell(ended)

    def _end_jobs(self) -> bool:
        """Jobs of the tier on disk that are done; whether all are."""
        ended = () if self._disk is None else self._disk.done()
        for number, well in ended:
            self._scheduler.disk_done(number, well)
        return bool(ended) and self._disk is not None and not self._disk.busy

    def _flush(self) -> None:
        """Before the process ends, what the host has is written to disk, as far as there is time."""
        deadline = time.monotonic() + _FLUSH_SECONDS
        while self._disk is not None and time.monotonic() < deadline:
            self._disk.submit(self._scheduler.disk_jobs())
            if not self._disk.busy:
                return
            time.sleep(_DISK_WAIT_SECONDS)
            self._end_jobs()

    def _patience(self) -> float | None:
        """How long nothing but a command changes anything. Requests may wait for time to pass; the scheduler knows until when.
        Without any it may still have steps that save blocks."""
        if not self._nothing:
            return 0.0
        if self._awaits_disk:
            return _DISK_WAIT_SECONDS
        if not self._scheduler.has_work:
            return None
        wake = self._scheduler.next_wake
        wait = 0.0 if wake is None else wake - time.monotonic()
        return min(max(wait, _BLOCKED_WAIT_SECONDS), _LONGEST_WAIT_SECONDS)

    def _take(self, command: EngineCommand) -> list[TokenEvent]:
        match command:
            case Submit():
                self._submit(command)
                return []
            case EndTurn():
                self._scheduler.end_turn(command.session_id, command.end)
                return []
            case CloseSession():
                self._scheduler.close_session(command.session_id)
                return []
            case Abort():
                return self._abort(command.request_id)
            case Shutdown():
                self._draining = True
                doomed = () if command.drain else tuple(self._sequences)
                return [event for request_id in doomed for event in self._abort(request_id)]

    def _submit(self, submit: Submit) -> None:
        if self._draining:
            self._channel.send(Rejected(submit.request_id, "draining", "the engine is shutting down"))
            return
        sequence = EngineSequence(submit, self._end_tokens)
        request = Request(
            request_id=submit.request_id,
            tokens=np.frombuffer(submit.tokens, dtype=np.int32),
            max_tokens=submit.sampling.max_tokens,
            priority=submit.priority,
            salt=submit.salt,
            stop_tokens=frozenset(sequence.end_tokens),
            min_tokens=submit.sampling.min_tokens,
            session_id=submit.session_id,
            tenant=submit.tenant,
            deadline=None if submit.deadline_seconds is None else time.monotonic() + submit.deadline_seconds,
            inter_token_seconds=submit.inter_token_seconds,
            retention_seconds=submit.retention_seconds,
        )
        try:
            self._executor.check(submit.sampling, sequence.end_tokens, request.tokens)
            self._scheduler.submit(request)
        except (RequestRefused, UsageError) as error:
            code = error.code if isinstance(error, RequestRefused) else "invalid_request"
            self._channel.send(Rejected(submit.request_id, code, f"{error.what}: expected {error.expected}, got {error.got}"))
            return
        self._sequences[submit.request_id] = sequence
        self._channel.send(Accepted(submit.request_id))

    def _abort(self, request_id: str) -> list[TokenEvent]:
        outcome = self._scheduler.abort(request_id)
        return [] if outcome is None else [self._event(outcome)]

    def _admitted(self, batch: StepKind) -> list[Admission]:
        """Looked up here, because an abort may drop a sequence while its step waits for the executor's thread."""
        admissions = [(admission, self._sequences[admission.request_id]) for admission in batch.admissions]
        for _, sequence in admissions:
            sequence.admitted()
        return admissions

    def _execute(self, batch: StepKind, admissions: list[Admission]) -> Started | Exception:
        """Touches nothing but the executor: with overlap this runs in the executor's thread."""
        try:
            for admission, sequence in admissions:
                self._executor.admit(
                    admission.slot, sequence.submit.sampling, sequence.end_tokens, admission.prompt, admission.output
                )
            return self._executor.start(batch)
        except Exception as error:  # handed over to `_complete`, which decides who is affected
            return error

    def _executed(self, batch: StepKind, admissions: list[Admission]) -> StepResult | Exception:
        return _result(self._execute(batch, admissions))

    def _complete(self, batch: StepKind, result: StepResult | Exception) -> None:
        now = time.monotonic()
        self._busy.end(batch, now)
        self._scheduler.tick(now)
        if self._roofline is not None and not isinstance(result, Exception):
            self._roofline_seconds += self._roofline(batch)
        match result:
            case StepResult():
                self._failed_steps = 0
                events = self._succeed(batch, result)
            case RowsFailed(result=StepResult() as partial):
                self._failed_steps = 0
                events = self._fail_rows(result) + self._succeed(batch, _without(partial, batch, result.request_ids))
            case _:
                events = self._fail_step(batch, result)
        self._tell(events)

    def _succeed(self, batch: StepKind, result: StepResult) -> list[TokenEvent]:
        logprobs = dict(zip(batch.logit_request_ids, result.logprobs, strict=True))
        outcomes = self._scheduler.complete(batch.step_id, result.tokens)
        return [self._event(outcome, logprobs.get(outcome.request_id)) for outcome in outcomes]

    def _fail_rows(self, error: RowsFailed) -> list[TokenEvent]:
        """Out of the scheduler before the step completes, so that what was sampled for them is dropped."""
        outcomes = [self._scheduler.abort(request_id) for request_id in error.request_ids]
        return [self._error_event(outcome, error.message) for outcome in outcomes if outcome is not None]

    def _fail_step(self, batch: StepKind, error: Exception) -> list[TokenEvent]:
        events = [self._error_event(outcome, str(error)) for outcome in self._scheduler.fail(batch.step_id)]
        self._failed_steps += 1
        if isinstance(error, DeviceLost):
            self._tell(events)
            raise EngineStuck(str(error))  # no further step can run in this process
        if self._failed_steps >= _FAILED_STEPS_IN_A_ROW:
            self._tell(events)
            raise EngineStuck(f"{self._failed_steps} steps in a row failed, the last with {type(error).__name__}: {error}")
        return events

    def _event(self, outcome: Outcome, logprob: TokenLogprob | None = None, error: str = "") -> TokenEvent:
        sequence = self._sequences[outcome.request_id]
        if outcome.finish_reason is not None:
            del self._sequences[outcome.request_id]
        return sequence.event(outcome, logprob, error)

    def _error_event(self, outcome: Outcome, message: str) -> TokenEvent:
        failed = Outcome(outcome.request_id, None, "error", None, outcome.cached_tokens)
        return self._event(failed, error=message)

    def _tell(self, events: list[TokenEvent]) -> None:
        stats = self._scheduler.stats()
        figures = {name: getattr(stats, name) for name in _OF_SCHEDULER}
        now = time.monotonic()
        figures["busy_seconds"], figures["host_seconds"] = self._busy.seconds(now), now - self._began - self._waited
        self._channel.send(StepNews(tuple(events), EngineStats(**figures, roofline_seconds=self._roofline_seconds)))


class BusyTime:
    """For how long there was a step in flight, one or several; those that only copy do not count."""

    def __init__(self) -> None:
        self._in_flight, self._seconds, self._since = 0, 0.0, 0.0

    def begin(self, step: Step, now: float) -> None:
        """A step is started."""
        if not self._in_flight:
            self._since = now
        self._in_flight += step.rows > 0

    def end(self, step: Step, now: float) -> None:
        """A step is complete."""
        self._in_flight -= step.rows > 0
        if step.rows and not self._in_flight:
            self._seconds += now - self._since

    def seconds(self, now: float) -> float:
        return self._seconds + (now - self._since if self._in_flight else 0.0)


def _launched_result(launched: Future[Started | Exception]) -> StepResult | Exception:
    return _result(launched.result())


def _result(started: Started | Exception) -> StepResult | Exception:
    """Waits for a step; an error is handed over to `_complete`."""
    if isinstance(started, Exception):
        return started
    try:
        return started()
    except Exception as error:
        return error


def _without(result: StepResult, batch: Step, failed: tuple[str, ...]) -> StepResult:
    """Any valid token in the failed places: the scheduler wants one for each row, and drops these."""
    keep = np.array([request_id not in failed for request_id in batch.logit_request_ids])
    return StepResult(np.where(keep, result.tokens, 0).astype(np.int32), result.logprobs)
