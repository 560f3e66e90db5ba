"""The first rank of a plan for several: starts the others on this host unless a launcher did, and is their one executor."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..plans.schema import Manifest
from .executor_interface import Report
from .launcher import launched
from .mesh import Rank
from .rank_processes import RankProcesses

if TYPE_CHECKING:
    from .ranked_executor import RankedExecutor
    from .weights import PlanSource

Lost = Callable[[str], None]
"""Told, in a thread of its own, that a rank ended unasked; in words."""


class FirstRank:
    """An `Executor` over all ranks: starts the others unless a launcher did, loads its own part, waits until all have theirs.

    `options` are those of rank_process.RankOptions but for number, address and threads; those of the host are shared out.
    """

    def __init__(
        self, plan: PlanSource, options: dict[str, object], weights: str | None, threads: int | None, report: Report, lost: Lost
    ) -> None:
        manifest = plan.manifest
        rank = Rank(manifest.mesh)
        each = threads or max(1, len(os.sched_getaffinity(0)) // rank.count)
        self._lost = lost
        self._ranked: RankedExecutor | None = None
        by = launched(manifest)
        self._processes = RankProcesses(rank.count, options | {"threads": each}, self._tell) if by is None else None
        bind_device(manifest, 0)
        from .collectives import Collectives, backend_of
        from .executor import load_executor
        from .ranked_executor import RankedExecutor

        if self._processes is not None:
            self._collectives = Collectives(rank, backend_of(manifest), self._processes.address)
        else:
            assert by is not None
            self._collectives = Collectives(rank, backend_of(manifest), by.address, serve=not by.serves_store)
        self._collectives.agree(str(options["plan_id"]))
        self._ranked = RankedExecutor(
            load_executor(plan, weights, each, report, collectives=self._collectives), self._collectives
        )
        self._collectives.meet()
        report("ranks")
        self.check, self.admit, self.start = self._ranked.check, self._ranked.admit, self._ranked.start

    def close(self) -> None:
        if self._ranked is not None:
            self._ranked.close()
        if self._processes is not None:
            self._processes.close()
        self._collectives.close()

    def _tell(self, number: int, code: int) -> None:
        last = -1 if self._ranked is None else self._ranked.last_step
        step = f"the last step that was begun is {last}" if last >= 0 else "no step was begun"
        self._lost(f"rank {number} ended with exit code {code}; {step}")


_VISIBLE = {"cuda": "CUDA_VISIBLE_DEVICES", "hip": "HIP_VISIBLE_DEVICES"}


def bind_device(manifest: Manifest, local_rank: int) -> None:
    """Let this process see its own device alone, before any library looks: the one of its number among those it may see."""
    if manifest.device is None:
        return
    name = _VISIBLE[manifest.device.vendor]
    seen = [part for part in os.environ.get(name, "").split(",") if part]
    os.environ[name] = seen[local_rank] if local_rank < len(seen) else str(local_rank)
