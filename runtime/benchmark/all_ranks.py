"""A plan's executor for measurements: this process's own, or that of all ranks, of which this process is the first."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ...plans.integrity import ranks
from ...plans.reader import Plan
from ..collectives import STEP_SECONDS
from ..executor import load_executor
from ..executor_interface import Executor, Report
from ..first_rank import FirstRank
from ..rank_watch import RanksLost


def open_all_ranks(plan: Plan, path: Path, weights: str | None, threads: int | None, report: Report) -> Executor:
    """Loaded on all ranks, whose processes on this host are started. Raises a TokenspeedError saying what does not fit; the
    process ends when a rank is lost."""
    if ranks(plan.manifest) == 1:
        return load_executor(plan, weights, threads, report)
    told: dict[str, object] = {"plan": str(path.resolve()), "plan_id": plan.plan_id, "weights": weights, "verify": False}
    return FirstRank(plan, told, weights, threads, STEP_SECONDS, report, _lost)


def _lost(error: RanksLost) -> None:
    print(error, file=sys.stderr, flush=True)
    os._exit(error.exit_code)
