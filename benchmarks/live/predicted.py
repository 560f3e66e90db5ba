"""The same traffic in virtual time: warmed up alike, and stopped where the live one was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import inf

import msgspec
from tokenspeed.plans.schema import Manifest
from tokenspeed.runtime.scheduling.building import scheduler_of
from tokenspeed.runtime.scheduling.prefix import chain_seed
from tokenspeed.runtime.scheduling.request import SchedulerStats
from tokenspeed.runtime.simulation.clients import Arrival, Clients
from tokenspeed.runtime.simulation.command import DEFAULT_HOST_TOKEN_SECONDS
from tokenspeed.runtime.simulation.conversations import Conversations
from tokenspeed.runtime.simulation.machine import VirtualMachine
from tokenspeed.runtime.simulation.report import TrafficReport
from tokenspeed.runtime.simulation.simulate import Scenario, report_of
from tokenspeed.runtime.simulation.step_times import StepTimes
from tokenspeed.runtime.simulation.turns import TurnRecord
from tokenspeed.runtime.simulation.virtual_engine import EngineSettings, Run, VirtualEngine
from tokenspeed.runtime.traffic.session import Session, Trace

from .arms import Arm, manifest_of
from .traffic import Traffic

_PAUSE_SECONDS = 2.0
"""Between the warm-up and the traffic: the client's start."""


@dataclass(frozen=True)
class Constants:
    """What the plan's cost model does not tell, as fields of `EngineSettings`."""

    host_seconds: float = 0.3e-3
    host_token_seconds: float = DEFAULT_HOST_TOKEN_SECONDS
    request_seconds: float = 2e-3
    request_token_seconds: float = 0.1e-6


def predict(
    manifest: Manifest, arm: Arm, traffic: Traffic, trace: Trace, warm_up: Trace | None, constants: Constants
) -> TrafficReport:
    """`warm_up` is played first, since a scheduler that has seen sessions decides otherwise than one that has not. Turns that
    did not end within the traffic's limit are left out, as the live client leaves them out."""
    manifest, limit = manifest_of(arm, manifest), traffic.seconds
    scenario = Scenario(
        traffic.agents, traffic.time_scale, arm.policy(), EngineSettings(**vars(constants), closing=True), {"arm": arm.label}
    )
    run = _run(manifest, scenario, trace, warm_up or Trace("none", ()), limit)
    kept = [record for record in run.records if record.result != "finished" or _ended(record, limit)]
    report = report_of(manifest, trace, scenario, replace(run, records=kept, wall_seconds=min(run.wall_seconds, limit)))
    unfinished = trace.turns - len(kept)
    return msgspec.structs.replace(report, traffic=report.traffic | {"unfinished": unfinished}) if unfinished else report


def _run(manifest: Manifest, scenario: Scenario, trace: Trace, warm_up: Trace, limit: float) -> Run:
    """Of the trace alone; its seconds count from its first arrival."""
    scheduler = scheduler_of(manifest, scenario.policy)
    machine = VirtualMachine(StepTimes(manifest))
    conversations = Conversations(partial(chain_seed, manifest.kv.compatibility), manifest.kv.identity_tokens)
    before = scheduler.stats(), 0.0, 0.0

    def traffic() -> Clients:
        nonlocal before
        before = scheduler.stats(), machine.busy_seconds, machine.roofline_seconds
        return _Until(scenario.clients(trace.sessions), limit)

    clients = _OneAfterTheOther(scenario.clients(warm_up.sessions), warm_up.turns, traffic)
    run = VirtualEngine(scheduler, machine, clients, conversations, scenario.engine).run()
    records, start = run.records[warm_up.turns :], clients.start
    for record in records:
        record.arrival_seconds -= start
        record.token_seconds = [seconds - start for seconds in record.token_seconds]
    stats, busy, roofline = before
    return replace(
        run,
        records=records,
        stats=_difference(run.stats, stats),
        wall_seconds=max((record.token_seconds[-1] for record in records if record.token_seconds), default=0.0),
        busy_seconds=run.busy_seconds - busy,
        roofline_seconds=run.roofline_seconds - roofline,
    )


def _difference(after: SchedulerStats, before: SchedulerStats) -> SchedulerStats:
    """Totals of what came between; gauges mean nothing."""
    return SchedulerStats(**{name: getattr(after, name) - getattr(before, name) for name in after.__struct_fields__})


def _ended(record: TurnRecord, limit: float) -> bool:
    return bool(record.token_seconds) and record.token_seconds[-1] <= limit


class _OneAfterTheOther:
    """`Clients` of sessions that warm the server up, and then others, who begin at `start` seconds."""

    def __init__(self, warm_up: Clients, turns: int, then: Callable[[], Clients]) -> None:
        self._left, self._then, self.start = turns, then, 0.0
        self._clients = warm_up if turns else then()

    @property
    def next_seconds(self) -> float:
        return self._clients.next_seconds + self.start

    def take(self, until: float) -> list[Arrival]:
        earliest, limit = self._clients.next_seconds, until - self.start
        found = self._clients.take(max(limit, earliest) if earliest + self.start <= until else limit)  # however it is rounded
        return [Arrival(arrival.seconds + self.start, arrival.session, arrival.turn) for arrival in found]

    def ended(self, session: Session, turn: int, seconds: float) -> None:
        self._clients.ended(session, turn, seconds - self.start)
        self._left -= 1
        if self._left == 0:
            self._clients, self.start = self._then(), seconds + _PAUSE_SECONDS


class _Until:
    """Clients who send nothing more after `limit` seconds."""

    def __init__(self, clients: Clients, limit: float) -> None:
        self._clients, self._limit = clients, limit

    @property
    def next_seconds(self) -> float:
        found = self._clients.next_seconds
        return found if found < self._limit else inf

    def take(self, until: float) -> list[Arrival]:
        return self._clients.take(min(until, self._limit))

    def ended(self, session: Session, turn: int, seconds: float) -> None:
        self._clients.ended(session, turn, seconds)
