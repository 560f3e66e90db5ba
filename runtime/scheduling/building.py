"""The scheduler of a plan: the one that the engine, the simulator and the benchmarks run."""

from __future__ import annotations

from ...plans.mesh import groups_of
from ...plans.schema import Manifest
from .groups import GroupedScheduler
from .kv import manager_of
from .pipeline import pipeline_of
from .request import SchedulerLimits
from .scheduler import Scheduler


def scheduler_of(manifest: Manifest) -> Scheduler | GroupedScheduler:
    """One with one KV manager for each group of ranks; where there is one group, its own. Raises PlanError when the plan's limits
    or KV geometry make no sense."""
    limits = SchedulerLimits.from_plan(manifest.schedule, manifest.model.max_context)
    pipeline = pipeline_of(manifest)
    schedulers = [Scheduler(limits, manager_of(manifest.kv), pipeline) for _ in range(groups_of(manifest.mesh))]
    if len(schedulers) == 1:
        return schedulers[0]
    return GroupedScheduler(schedulers, round(manifest.schedule.traffic["output_tokens"]))
