"""The engine loop (runtime/engine.py) in virtual time: the same scheduler, the same order of calls, no clock."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from math import inf

import numpy as np
from numpy.typing import NDArray

from ..scheduling.errors import RequestRefused
from ..scheduling.groups import GroupedScheduler
from ..scheduling.request import Outcome, SchedulerStats
from ..scheduling.scheduler import Scheduler
from ..scheduling.step import SlotAdmission, Step
from ..traffic.session import Session
from .clients import Arrival, Clients
from .conversations import Conversations
from .errors import SimulationStuck
from .machine import VirtualMachine
from .outputs import Outputs
from .timeline import Timeline, TimelineRecorder
from .turns import TurnRecord

_BLOCKED_WAIT_SECONDS, _BLOCKED_WAITS, _LONGEST_WAIT_SECONDS = 0.01, 1000, 1.0
"""As the engine waits, when there are requests and nothing can run."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """`host_seconds` is what scheduling and launching a step takes on the host, which goes on beside the machine's steps where
    `overlap` is set; `host_token_seconds` more for each token of a sequence when it is admitted, and when it ends, since its
    blocks are looked up and given back one by one. `request_seconds`, and `request_token_seconds` for each token of the prompt,
    pass between a client's sending a turn and its being queued (HTTP, templates, tokens).

    With `hints` the scheduler hears of sessions why turns ended; with `closing` also when a session has no further turn.
    """

    host_seconds: float = 0.0
    request_seconds: float = 0.0
    overlap: bool = True
    hints: bool = True
    closing: bool = False
    host_token_seconds: float = 0.0
    request_token_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Run:
    """All that happened. `wall_seconds` is virtual time from the first arrival to the last answer."""

    records: list[TurnRecord]
    stats: SchedulerStats
    timeline: Timeline
    wall_seconds: float
    busy_seconds: float
    roofline_seconds: float


@dataclass(slots=True)
class _Live:
    record: TurnRecord
    session: Session


@dataclass(frozen=True, slots=True)
class _Launched:
    step_id: int
    end: float
    tokens: NDArray[np.int32]


class VirtualEngine:
    """Plays `clients` against a scheduler and a machine, once. `watch` is called with the time after each
    completed step."""

    def __init__(
        self,
        scheduler: Scheduler | GroupedScheduler,
        machine: VirtualMachine,
        clients: Clients,
        conversations: Conversations,
        settings: EngineSettings,
        watch: Callable[[float], None] | None = None,
    ) -> None:
        self._scheduler, self._machine, self._clients = scheduler, machine, clients
        self._conversations, self._settings, self._watch = conversations, settings, watch
        groups = scheduler.groups if isinstance(scheduler, GroupedScheduler) else (scheduler,)
        self._outputs = Outputs(len(groups), groups[0].limits.max_sequences)
        self._live: dict[str, _Live] = {}
        self._records: list[TurnRecord] = []
        self._timeline = TimelineRecorder()
        self._ended = 0.0
        self._sent: list[tuple[float, int, Arrival]] = []  # by the time when they come to the queue
        self._numbers = count()

    def run(self) -> Run:
        """Until every turn has ended. Raises SimulationStuck where the engine would."""
        now, blocked = 0.0, 0
        scheduler, running = self._scheduler, deque[_Launched]()
        most = scheduler.max_in_flight if self._settings.overlap else 1
        while True:
            scheduler.tick(now)
            self._take_arrivals(now)
            step = scheduler.schedule()
            if step is not None:
                now += self._settings.host_seconds + self._settings.host_token_seconds * sum(map(_tokens, step.admissions))
                running.append(self._launch(step, now))
            if running:
                blocked = 0
                if step is None or len(running) >= most:
                    now = self._complete(running.popleft(), now)
            elif scheduler.has_work:
                blocked += 1
                now = self._wait(now, blocked)
            elif (arrival := self._next_arrival()) < inf:
                if arrival - now > self._timeline.interval:
                    self._timeline.take(now, scheduler.stats(), self._machine.busy_seconds)
                now = max(now, arrival)
            else:
                return self._result()

    def _take_arrivals(self, now: float) -> None:
        for arrival in self._clients.take(now):
            turn = arrival.session.turns[arrival.turn]
            delay = self._settings.request_seconds + self._settings.request_token_seconds * turn.prompt_tokens
            heapq.heappush(self._sent, (arrival.seconds + delay, next(self._numbers), arrival))
        while self._sent and self._sent[0][0] <= now:
            self._submit(heapq.heappop(self._sent)[2], now)

    def _next_arrival(self) -> float:
        """When a turn is sent next, or comes to the queue."""
        return min(self._sent[0][0], self._clients.next_seconds) if self._sent else self._clients.next_seconds

    def _submit(self, arrival: Arrival, now: float) -> None:
        session, number = arrival.session, arrival.turn
        asked = self._conversations.ask(session, number)
        request = asked.request
        record = TurnRecord(session.session_id, number, arrival.seconds, len(request.tokens), session.tenant, session.priority)
        self._records.append(record)
        try:
            if isinstance(self._scheduler, GroupedScheduler):
                self._scheduler.submit(request)
            else:
                self._scheduler.submit(request, asked.chain)
        except RequestRefused:
            record.result = "refused"
            self._end_turn(session, number, now)
            return
        self._outputs.add(request.request_id, len(request.tokens), asked.answer)
        self._live[request.request_id] = _Live(record, session)

    def _launch(self, step: Step, now: float) -> _Launched:
        return _Launched(step.step_id, self._machine.launch(step, now), self._outputs.sampled(step))

    def _complete(self, launched: _Launched, now: float) -> float:
        """Wait for a step; the time when its news are out."""
        live, now = self._live, max(now, launched.end)
        self._scheduler.tick(now)
        outcomes = self._scheduler.complete(launched.step_id, launched.tokens)
        if self._settings.host_token_seconds:
            ended = [live[outcome.request_id].record for outcome in outcomes if outcome.finish_reason is not None]
            now += self._settings.host_token_seconds * sum(record.prompt_tokens + record.output_tokens for record in ended)
        for outcome in outcomes:
            if outcome.token is not None:
                live[outcome.request_id].record.token_seconds.append(now)
            if outcome.finish_reason is not None:
                self._finish(outcome, now)
        if now >= self._timeline.due:
            self._timeline.take(now, self._scheduler.stats(), self._machine.busy_seconds)
        if self._watch is not None:
            self._watch(now)
        return now

    def _finish(self, outcome: Outcome, now: float) -> None:
        ended = self._live.pop(outcome.request_id)
        self._outputs.drop(outcome.request_id)
        ended.record.cached_tokens = outcome.cached_tokens
        if outcome.finish_reason == "error":
            ended.record.result = "failed"
        self._end_turn(ended.session, ended.record.turn, now)

    def _end_turn(self, session: Session, number: int, now: float) -> None:
        last, end = number + 1 == len(session.turns), session.turns[number].end
        if end is not None and self._settings.hints:
            self._scheduler.end_turn(session.session_id, end)
        if last:
            self._conversations.close(session)
            if self._settings.closing:
                self._scheduler.close_session(session.session_id)
        self._clients.ended(session, number, now)
        self._ended = max(self._ended, now)

    def _wait(self, now: float, blocked: int) -> float:
        """Nothing runs and nothing can be scheduled: until the next turn arrives, or the scheduler says that time alone helps."""
        wake = self._scheduler.next_wake
        if wake is None and blocked > _BLOCKED_WAITS:
            waiting = self._scheduler.stats().waiting
            raise SimulationStuck(
                "no step can be scheduled although requests are left",
                where=f"at {now:.3f} s",
                got=f"{waiting} requests wait, none runs",
                fix="report this with the plan and the trace: the live engine would stop here too",
            )
        wait = max(0.0 if wake is None else wake - now, _BLOCKED_WAIT_SECONDS)
        return min(now + min(wait, _LONGEST_WAIT_SECONDS), max(now, self._next_arrival()))

    def _result(self) -> Run:
        machine = self._machine
        self._timeline.take(self._ended, self._scheduler.stats(), machine.busy_seconds)
        first = min((record.arrival_seconds for record in self._records), default=0.0)
        return Run(
            records=self._records,
            stats=self._scheduler.stats(),
            timeline=self._timeline.timeline(),
            wall_seconds=self._ended - first,
            busy_seconds=machine.busy_seconds,
            roofline_seconds=machine.roofline_seconds,
        )


def _tokens(admission: SlotAdmission) -> int:
    return len(admission.prompt) + len(admission.output)
