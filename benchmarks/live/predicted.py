"""The same traffic in virtual time, stopped where the live one was."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

import msgspec
from tokenspeed.plans.schema import Manifest
from tokenspeed.runtime.simulation.clients import Arrival, Clients
from tokenspeed.runtime.simulation.command import DEFAULT_HOST_TOKEN_SECONDS
from tokenspeed.runtime.simulation.report import TrafficReport
from tokenspeed.runtime.simulation.simulate import Scenario, play, report_of
from tokenspeed.runtime.simulation.turns import TurnRecord
from tokenspeed.runtime.simulation.virtual_engine import EngineSettings
from tokenspeed.runtime.traffic.session import Session, Trace

from .arms import Arm, manifest_of
from .traffic import Traffic


@dataclass(frozen=True)
class Constants:
    """What the plan's cost model does not tell, as fields of `EngineSettings`."""

    host_seconds: float = 0.3e-3
    host_token_seconds: float = DEFAULT_HOST_TOKEN_SECONDS
    request_seconds: float = 2e-3
    request_token_seconds: float = 0.1e-6


def predict(manifest: Manifest, arm: Arm, traffic: Traffic, trace: Trace, constants: Constants) -> TrafficReport:
    """Turns that did not end within the traffic's limit are left out, as the live client leaves them out."""
    manifest, limit = manifest_of(arm, manifest), traffic.seconds
    settings = EngineSettings(**vars(constants), closing=True)
    scenario = Scenario(traffic.agents, traffic.time_scale, arm.policy(), settings, {"arm": arm.label})
    run = play(manifest, _Until(scenario.clients(trace.sessions), limit), scenario)
    kept = [record for record in run.records if record.result != "finished" or _ended(record, limit)]
    unfinished = trace.turns - len(kept)
    report = report_of(manifest, trace, scenario, replace(run, records=kept, wall_seconds=min(run.wall_seconds, limit)))
    return report if not unfinished else _with_unfinished(report, unfinished)


def _with_unfinished(report: TrafficReport, turns: int) -> TrafficReport:
    return msgspec.structs.replace(report, traffic=report.traffic | {"unfinished": turns})


def _ended(record: TurnRecord, limit: float) -> bool:
    return bool(record.token_seconds) and record.token_seconds[-1] <= limit


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
