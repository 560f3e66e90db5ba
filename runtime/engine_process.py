"""The engine process: `python -m tokenspeed.runtime.engine_process OPTIONS`, started by the entrypoint alone."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from ..plans.errors import PlanError, TokenspeedError
from ..plans.integrity import ranks
from ..plans.reader import Plan
from .engine_channel import EngineChannel
from .openmp import bound_spinning
from .protocol import EngineFailed, Ready
from .startup_clock import StartupClock

if TYPE_CHECKING:  # imported once a device's driver is at work
    from .collectives import Collectives
    from .disk_jobs import DiskJobs
    from .engine import EngineLoop
    from .executor_interface import Executor, Report
    from .first_rank import FirstRank
    from .kv_store import KvStore
    from .scheduling.step import GroupedStep, StepBatch


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The one command-line argument, as JSON. `plan_id` is what the entrypoint checked; `weights` is a path, "dummy" or
    None for those in the plan; `policy` and `without` are names of scheduling/ablation.py; `disk_kv` is a folder; `commands` and
    `news` are socket addresses.
    """

    plan: str
    plan_id: str
    weights: str | None
    threads: int | None
    pin_threads: bool
    overlap: bool
    verify: bool
    step_timeout: float
    policy: str
    without: tuple[str, ...]
    tenant_weights: dict[str, float]
    disk_kv: str | None = None
    disk_kv_bytes: int = 0
    commands: str
    news: str


def run(options: EngineOptions, channel: EngineChannel) -> int:
    """Load, verify if asked, serve until told to stop; the process's exit code."""
    clock = StartupClock()
    clock.finish("engine start")
    try:
        with Plan.open(options.plan) as plan:
            check_same_plan(plan, options.plan, options.plan_id)
            clock.finish("plan checks")
            if plan.manifest.device is not None:
                from .device.opening import begin_to_open

                begin_to_open(plan.manifest.device.vendor)
            bound_spinning()  # before torch is loaded
            clock.finish("imports")
            alone = ranks(plan.manifest) == 1
            if options.verify and alone:  # before the weights are there: goldens have their own, and both may not fit
                _verify(plan, options.weights, clock.finish)
                clock.finish("verification")
            with ExitStack() as closing:
                store = _store(plan, options, closing, clock.finish)
                executor = _executor(plan, options, clock.finish)
                closing.callback(executor.close)
                clock.finish("weights")
                loop = _loop(plan, executor, channel, options, store, closing)
                channel.send(Ready(clock.phases))
                return 0 if loop.run() else 1
    except TokenspeedError as error:
        channel.send(EngineFailed(str(error), error.exit_code, error.to_dict()))
        return error.exit_code
    except Exception as error:  # the process boundary
        channel.send(EngineFailed(f"the engine could not start: {type(error).__name__}: {error}", 1))
        return 1


def _executor(plan: Plan, options: EngineOptions, report: Report) -> Executor | FirstRank:
    """This process's own, or that of all ranks."""
    if ranks(plan.manifest) == 1:
        from .executor import load_executor

        return load_executor(plan, options.weights, options.threads, report, pin_threads=options.pin_threads, host_tier=True)
    from .first_rank import FirstRank

    told: dict[str, object] = {"plan": options.plan, "plan_id": options.plan_id, "weights": options.weights}
    told["verify"] = options.verify

    def lost(error: TokenspeedError) -> None:
        """From another thread: this one may wait for that rank for ever."""
        channel = EngineChannel(options.commands, options.news)
        channel.send(EngineFailed(str(error), error.exit_code, error.to_dict()))
        channel.close()
        os._exit(error.exit_code)

    first = partial(_verify, plan, options.weights, report) if options.verify else None
    return FirstRank(plan, told, options.weights, options.threads, options.step_timeout, report, lost, first)


def check_same_plan(plan: Plan, path: str, plan_id: str) -> None:
    """Raises PlanError when the file is not the plan that was checked."""
    if plan.plan_id != plan_id:
        raise PlanError(
            "the plan changed while it was being loaded",
            where=path,
            expected=plan_id,
            got=plan.plan_id,
            fix="start again",
        )


def _store(plan: Plan, options: EngineOptions, closing: ExitStack, report: Report) -> KvStore | None:
    """The files of the tier on disk, before anything large is loaded."""
    if options.disk_kv is None:
        return None
    from .disk_kv import open_store

    store = open_store(plan.manifest, options.disk_kv, options.disk_kv_bytes)
    closing.callback(store.close)
    report("kv on disk")
    return store


def _loop(
    plan: Plan,
    executor: Executor | FirstRank,
    channel: EngineChannel,
    options: EngineOptions,
    store: KvStore | None,
    closing: ExitStack,
) -> EngineLoop[StepBatch] | EngineLoop[GroupedStep]:
    from .engine import EngineLoop
    from .first_rank import FirstRank
    from .scheduling.ablation import POLICIES, without
    from .scheduling.building import scheduler_of
    from .scheduling.groups import GroupedScheduler
    from .simulation.step_times import StepTimes

    policy = without(POLICIES[options.policy], options.without)
    scheduler = scheduler_of(plan.manifest, policy, options.tenant_weights)
    ends, overlap, roofline = plan.manifest.model.end_tokens, options.overlap, StepTimes(plan.manifest).roofline
    if isinstance(scheduler, GroupedScheduler):
        assert isinstance(executor, FirstRank)
        return EngineLoop(scheduler, executor, channel, ends, overlap=overlap, roofline=roofline)
    disk: DiskJobs | None = None
    if store is not None:
        from .disk_jobs import READERS, DiskJobs
        from .executor import PlanExecutor

        assert isinstance(executor, PlanExecutor)
        scheduler.add_disk(store.places, store.bytes_per_second(READERS), store.units)
        disk = DiskJobs(store, executor.host_block)
        closing.callback(disk.close)
    return EngineLoop(scheduler, executor, channel, ends, overlap=overlap, roofline=roofline, disk=disk)


def _verify(plan: Plan, weights: str | None, report: Report, collectives: Collectives | None = None) -> None:
    from .goldens import verify_goldens

    verify_goldens(plan, weights, report, collectives)


def exit_with_parent() -> None:
    """The entrypoint holds our standard input open and never writes: its end means that the entrypoint is gone."""

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os._exit(1)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()


def main() -> int:
    # The entrypoint drains on these signals and needs the engine for it; it ends the engine by its own means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    exit_with_parent()
    options = msgspec.json.decode(sys.argv[1], type=EngineOptions)
    channel = EngineChannel(options.commands, options.news)
    try:
        return run(options, channel)
    finally:
        channel.close()


if __name__ == "__main__":
    sys.exit(main())
