"""One simulation from end to end: a plan, a trace and how to play it in; a report out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from math import prod

import msgspec

from ...plans.errors import UsageError
from ...plans.host_tier import HOST_LINK
from ...plans.perf_model import UNITS_OF_MEASURED
from ...plans.schema import Manifest, Rate
from ...plans.units import format_bytes
from ..benchmark.statistics import ratio
from ..scheduling.building import scheduler_of
from ..scheduling.policy import AGENTIC, Policy
from ..scheduling.prefix import chain_seed
from ..traffic.session import Session, Trace
from .clients import Agents, Arrivals, Clients
from .conversations import Conversations
from .machine import VirtualMachine
from .report import SCHEMA, CacheReport, MachineReport, TrafficReport, class_report, classes_by, curve, latencies
from .step_times import StepTimes
from .virtual_engine import EngineSettings, Run, VirtualEngine


@dataclass(frozen=True, slots=True)
class Scenario:
    """How traffic is played. `agents`: sessions at a time, each turn after the answer before it; None: at the trace's own times.
    `time_scale` stretches gaps and arrival times. `plan` names the plan in the report."""

    agents: int | None = 8
    time_scale: float = 1.0
    policy: Policy = AGENTIC
    engine: EngineSettings = field(default_factory=EngineSettings)
    plan: Mapping[str, str] = field(default_factory=dict)

    def clients(self, sessions: Sequence[Session]) -> Clients:
        if self.agents is None:
            return Arrivals(sessions, self.time_scale)
        return Agents(sessions, self.agents, self.time_scale)


def simulate(manifest: Manifest, trace: Trace, scenario: Scenario) -> TrafficReport:
    """Play `trace` against the plan's own scheduler. Raises SimulationError."""
    return report_of(manifest, trace, scenario, play(manifest, scenario.clients(trace.sessions), scenario))


def play(manifest: Manifest, clients: Clients, scenario: Scenario) -> Run:
    """Play clients, which need not be those of the scenario, against the plan's own scheduler and KV manager."""
    kv = manifest.kv
    conversations = Conversations(partial(chain_seed, kv.compatibility), kv.identity_tokens)
    machine = VirtualMachine(StepTimes(manifest))
    return VirtualEngine(scheduler_of(manifest, scenario.policy), machine, clients, conversations, scenario.engine).run()


def with_rates(manifest: Manifest, rates: Mapping[str, float], source: str) -> Manifest:
    """The plan on a machine of these rates, in the units of the plan's. Raises UsageError for one that is not positive."""
    known = manifest.performance.rates
    units = {"compute": "FLOP/s", "bandwidth": "B/s", "dispatch": "s", HOST_LINK: "B/s"} | UNITS_OF_MEASURED
    for name, value in rates.items():
        if name not in units or not value > 0:
            raise UsageError(
                "this rate is not usable",
                where=f"{source}: {name}",
                expected=f"a positive number for {', '.join(units)}",
                got=str(value),
            )
    changed = {name: Rate(value=value, unit=units[name], source=source, basis="measured") for name, value in rates.items()}
    performance = msgspec.structs.replace(manifest.performance, rates=known | changed)
    return msgspec.structs.replace(manifest, performance=performance)


def with_host_tier(manifest: Manifest, count: int) -> Manifest:
    """The plan with `count` bytes of each rank's host memory for KV blocks, shared out to its pools as on the device. Raises
    UsageError when not one block of each fits, or nothing could be found there again."""
    kv = manifest.kv
    found = [count * blocks // kv.bytes if kv.bytes else 0 for blocks in kv.pool_blocks]
    if count and not (kv.shares_prefixes and kv.bytes):
        raise UsageError(
            "nothing could be reused from host memory",
            where="--host-kv",
            expected="0",
            got=format_bytes(count),
            fix=f"leave it out: prefix reuse is {kv.prefix_reuse}, the pools have {format_bytes(kv.bytes)}",
        )
    if count and 0 in found:
        expected = f"at least {format_bytes(-(-kv.bytes // min(kv.pool_blocks)))}, or 0"
        raise UsageError("not one KV block fits", where="--host-kv", expected=expected, got=format_bytes(count))
    windows = tuple(msgspec.structs.replace(pool, host_blocks=blocks) for pool, blocks in zip(kv.windows, found[1:], strict=True))
    return msgspec.structs.replace(manifest, kv=msgspec.structs.replace(kv, host_blocks=found[0], windows=windows))


def report_of(manifest: Manifest, trace: Trace, scenario: Scenario, run: Run) -> TrafficReport:
    accelerators = prod(axis.size for axis in manifest.mesh)
    records, seconds, stats = run.records, run.wall_seconds, run.stats
    engine, left = scenario.engine, trace.left_out
    return TrafficReport(
        schema=SCHEMA,
        kind="simulated",
        plan=dict(scenario.plan) | {"model": manifest.model.name, "target": manifest.target.name},
        traffic={
            "source": trace.source,
            "loop": "open" if scenario.agents is None else "closed",
            "agents": scenario.agents or 0,
            "time_scale": scenario.time_scale,
            "sessions": len(trace.sessions),
            "turns": trace.turns,
            "left_out_sessions": left.sessions,
            "left_out_turns": left.turns,
        },
        policy=asdict(scenario.policy),
        settings=asdict(engine),
        makespan_seconds=seconds,
        all=class_report("all", records, seconds, accelerators),
        priorities=classes_by(lambda record: record.priority, records, seconds, accelerators),
        tenants=classes_by(lambda record: record.tenant, records, seconds, accelerators),
        cache=CacheReport(
            queried_tokens=stats.prefix_queries,
            hit_tokens=stats.prefix_hits,
            hit_rate=ratio(stats.prefix_hits, stats.prefix_queries),
            device_hit_rate=ratio(stats.prefix_hits - stats.host_hits, stats.prefix_queries),
            host_hit_rate=ratio(stats.host_hits, stats.prefix_queries),
            recomputed_tokens=stats.recomputed_tokens,
            offloaded_tokens=stats.offloaded_tokens,
            reloaded_tokens=stats.reloaded_tokens,
            device_blocks=sum(manifest.kv.pool_blocks),
            host_blocks=sum(manifest.kv.pool_host_blocks),
            block_tokens=manifest.kv.block_tokens,
            evicted_units=stats.evictions,
        ),
        machine=MachineReport(
            accelerators=accelerators,
            steps=stats.steps,
            preemptions=stats.preemptions,
            busy_share=ratio(run.busy_seconds, seconds),
            speed_of_light_share=ratio(run.roofline_seconds, seconds),
        ),
        curves={name: curve(values) for name, values in latencies(records).items()},
        timeline=run.timeline,
    )
