"""The scheduler of a plan: the one that the engine, the simulator and the benchmarks run."""

from __future__ import annotations

from collections.abc import Mapping

from ...plans.mesh import groups_of
from ...plans.schema import Manifest
from .costs import StepCosts
from .groups import GroupedScheduler
from .kv import manager_of
from .pipeline import pipeline_of
from .policy import AGENTIC, Policy
from .request import SchedulerLimits
from .scheduler import Scheduler


def scheduler_of(
    manifest: Manifest, policy: Policy = AGENTIC, weights: Mapping[str, float] | None = None
) -> Scheduler | GroupedScheduler:
    """One with one KV manager for each group of ranks; where there is one group, its own. Raises PlanError when the plan's limits
    or KV geometry make no sense. `weights` are the tenants'."""
    limits = SchedulerLimits.from_plan(manifest.schedule, manifest.model.max_context)
    pipeline, costs = pipeline_of(manifest), StepCosts.from_manifest(manifest)
    schedulers = [
        Scheduler(limits, manager_of(manifest.kv), pipeline, policy=policy, costs=costs, weights=weights)
        for _ in range(groups_of(manifest.mesh))
    ]
    if len(schedulers) == 1:
        return schedulers[0]
    return GroupedScheduler(schedulers, round(manifest.schedule.traffic["output_tokens"]))
