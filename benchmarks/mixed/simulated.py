"""The same two classes in virtual time: a plan's own scheduler on a machine that takes what the plan predicts."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from math import inf
from typing import Any

import numpy as np
from tokenspeed.plans.schema import Manifest
from tokenspeed.runtime.benchmark.exchange import Exchange
from tokenspeed.runtime.entrypoint.service_tiers import DEFAULT_TIERS
from tokenspeed.runtime.scheduling.building import scheduler_of
from tokenspeed.runtime.scheduling.groups import GroupedScheduler
from tokenspeed.runtime.scheduling.policy import Policy
from tokenspeed.runtime.scheduling.prefix import chain_seed
from tokenspeed.runtime.simulation.clients import Arrival
from tokenspeed.runtime.simulation.conversations import Asked, Conversations
from tokenspeed.runtime.simulation.machine import VirtualMachine
from tokenspeed.runtime.simulation.step_times import StepTimes
from tokenspeed.runtime.simulation.turns import TurnRecord
from tokenspeed.runtime.simulation.virtual_engine import EngineSettings, VirtualEngine
from tokenspeed.runtime.traffic.contents import named
from tokenspeed.runtime.traffic.session import Prompt, Session, Turn

from .load import Load, Seen, Urgency, batch_lengths

_HOST_SECONDS, _REQUEST_SECONDS = 0.0003, 0.002
_BATCH = "batch"


def simulate_load(manifest: Manifest, policy: Policy, load: Load, urgency: Urgency) -> Seen:
    """As `run_load`."""
    scheduler = scheduler_of(manifest, policy)
    machine = VirtualMachine(StepTimes(manifest))
    groups = scheduler.groups if isinstance(scheduler, GroupedScheduler) else (scheduler,)
    clients = _Clients(load, lambda: _totals(machine, scheduler.stats()))
    turns = _Urgent(urgency, clients, manifest.kv.compatibility, manifest.kv.identity_tokens)
    settings = EngineSettings(_HOST_SECONDS * len(groups), _REQUEST_SECONDS)
    run = VirtualEngine(scheduler, machine, clients, turns, settings).run()
    seen = Seen(seconds=clients.over_seconds - clients.batch_seconds)
    seen.used = {name: clients.at_end[name] - before for name, before in clients.at_begin.items()}
    for record in run.records:
        if record.session_id.startswith(_BATCH):
            seen.batch.append(_exchange(record))
        elif record.arrival_seconds >= clients.batch_seconds:
            seen.interactive.append(_exchange(record))
        elif record.turn:
            seen.alone.append(_exchange(record))
    return seen


class _Clients:
    """Who sends what when; `totals` are the machine's counters, taken when the batch begins and when it ends."""

    def __init__(self, load: Load, totals: Callable[[], dict[str, float]]) -> None:
        self._load, self._totals = load, totals
        self._heap: list[tuple[float, int, Arrival]] = []
        self._places, self._lives = count(), count()
        self._lengths = iter(batch_lengths(load))
        self._left = load.requests
        self._ready: list[tuple[Session, int]] = []
        self.batch_seconds = self.over_seconds = inf
        self.at_begin: dict[str, float] = {}
        self.at_end: dict[str, float] = {}
        self.now = 0.0
        for _ in range(load.sessions):
            self._put(0.0, self._session(), 0)

    @property
    def next_seconds(self) -> float:
        return self._heap[0][0] if self._heap else inf

    def take(self, until: float) -> list[Arrival]:
        found: list[Arrival] = []
        while self._heap and self._heap[0][0] <= until:
            found.append(heapq.heappop(self._heap)[2])
        self.now = until
        return found

    def ended(self, session: Session, turn: int, seconds: float) -> None:
        if session.session_id.startswith(_BATCH):
            self._left -= 1
            self._next_of_batch(seconds)
            if not self._left:
                self.over_seconds, self.at_end = seconds, self._totals()
        elif self.batch_seconds == inf:
            self._warm_up(session, turn, seconds)
        elif seconds < self.over_seconds:
            following = (session, turn + 1) if turn + 1 < len(session.turns) else (self._session(), 0)
            self._put(seconds + self._load.think_seconds, *following)

    def _warm_up(self, session: Session, turn: int, seconds: float) -> None:
        """Two turns of each session, then the batch and all sessions begin."""
        if turn == 0:
            self._put(seconds, session, 1)
            return
        self._ready.append((session, 2))
        if len(self._ready) < self._load.sessions:
            return
        self.batch_seconds, self.at_begin = seconds, self._totals()
        for _ in range(self._load.at_once):
            self._next_of_batch(seconds)
        for number, (ready, following) in enumerate(self._ready):
            self._put(seconds + self._load.think_seconds * number / len(self._ready), ready, following)

    def _next_of_batch(self, seconds: float) -> None:
        length = next(self._lengths, None)
        if length is not None:
            name = f"{_BATCH}-{next(self._lives)}"
            prompt = Prompt(np.array([named(name)], np.uint64), np.array([length]))
            self._put(seconds, Session(name, (Turn(prompt, self._load.batch_output),)), 0)

    def _put(self, seconds: float, session: Session, turn: int) -> None:
        heapq.heappush(self._heap, (seconds, next(self._places), Arrival(seconds, session, turn)))

    def _session(self) -> Session:
        """As many turns as the context holds, the first ones of `context` tokens."""
        load, name = self._load, f"interactive-{next(self._lives)}"
        contents, ends = [named(name, "begin")], [load.context]
        turns: list[Turn] = []
        while ends[-1] + load.output < load.max_context:
            turns.append(Turn(Prompt(np.array(contents, np.uint64), np.array(ends)), load.output))
            contents += [named(name, "answer", len(turns)), named(name, "turn", len(turns))]
            ends += [ends[-1] + load.output, ends[-1] + load.output + load.turn_tokens]
        return Session(name, tuple(turns))


class _Urgent(Conversations):
    """Requests say of themselves what their class says."""

    def __init__(self, urgency: Urgency, clients: _Clients, compatibility: str, unit_tokens: int) -> None:
        super().__init__(lambda salt: chain_seed(compatibility, salt), unit_tokens)
        self._urgency, self._clients = urgency, clients

    def ask(self, session: Session, number: int) -> Asked:
        asked = super().ask(session, number)
        batch = session.session_id.startswith(_BATCH)
        fields = _scheduler_fields(self._urgency.batch if batch else self._urgency.interactive, self._clients.now)
        request = replace(asked.request, session_id="" if batch else session.session_id, **fields)
        return replace(asked, request=request)


def _scheduler_fields(fields: Mapping[str, Any], now: float) -> dict[str, Any]:
    """A request's fields as the entrypoint gives them to the scheduler."""
    if not fields:
        return {}
    tier = DEFAULT_TIERS[fields["service_tier"]]
    deadline, gap = fields.get("deadline_ms", tier.deadline_ms), fields.get("inter_token_ms", tier.inter_token_ms)
    found: dict[str, Any] = {"priority": tier.priority}
    if deadline is not None:
        found["deadline"] = now + deadline / 1000
    if gap is not None:
        found["inter_token_seconds"] = gap / 1000
    return found


def _exchange(record: TurnRecord) -> Exchange:
    return Exchange(
        events=[seconds - record.arrival_seconds for seconds in record.token_seconds],
        prompt_tokens=record.prompt_tokens,
        output_tokens=record.output_tokens,
        cached_tokens=record.cached_tokens,
        error="" if record.result == "finished" else record.result,
    )


def _totals(machine: VirtualMachine, stats: Any) -> dict[str, float]:
    found = {"engine_busy_seconds": machine.busy_seconds, "engine_roofline_seconds": machine.roofline_seconds}
    return found | {"num_preemptions": stats.preemptions, "recomputed_tokens": stats.recomputed_tokens}
