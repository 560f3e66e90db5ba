"""The first rank of a plan for several: starts the others on this host unless a launcher did, and is their one executor."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..plans.integrity import ranks
from ..plans.mesh import GROUPS
from ..plans.schema import Manifest
from .executor_interface import Report
from .launcher import Launched, launched
from .mesh import Rank
from .rank_processes import RankProcesses
from .rank_watch import RanksLost, RankWatch

if TYPE_CHECKING:
    from .collectives import Collectives
    from .weights import PlanSource

Lost = Callable[[RanksLost], None]
"""Told once, in a thread of its own, that ranks ended unasked or hang. Ends this process: its other threads may wait for them."""


class FirstRank:
    """An `Executor` over all ranks: starts the others unless a launcher did, loads its own part, waits until all have theirs.

    `options` are those of rank_process.RankOptions but for number, address and threads; threads of the host are shared out.
    `before_loading` is what the other ranks are told to do with `verify`, on this one.
    """

    def __init__(
        self,
        plan: PlanSource,
        options: dict[str, object],
        weights: str | None,
        threads: int | None,
        step_timeout: float,
        report: Report,
        lost: Lost,
        before_loading: Callable[[Collectives], None] | None = None,
    ) -> None:
        manifest = plan.manifest
        count = ranks(manifest)
        self._lost, self._telling = lost, threading.Lock()
        by = launched(manifest)
        self._watch = RankWatch(count, step_timeout, self._tell, self._exit_code, everywhere=by is not None)
        told = options | {"threads": threads, "step_timeout": step_timeout}
        self._processes = RankProcesses(count, told, self._ended_early) if by is None else None
        bind_device(manifest, 0)
        from .collectives import Collectives, backend_of
        from .executor import load_executor
        from .ranked_executor import RankedExecutor

        place = by or Launched(0, 0, count, self._processes.address if self._processes else "", False, tuple(range(count)))
        rank = Rank(manifest.mesh, 0, place.beside)
        self._collectives = Collectives(
            rank, backend_of(manifest), place.address, serve=not place.serves_store, step_timeout=step_timeout
        )
        self._collectives.watched_at(self._watch.address)
        self._collectives.agree(str(options["plan_id"]))
        if before_loading is not None:
            before_loading(self._collectives)
        executor = load_executor(plan, weights, threads or place.threads, report, collectives=self._collectives, host_tier=True)
        slots, meet = manifest.schedule.max_sequences, GROUPS in executor.axes
        self._ranked = RankedExecutor(executor, self._collectives, self._watch, slots, groups_meet=meet)
        self._collectives.meet()
        report("ranks")
        self.check, self.admit, self.start = self._ranked.check, self._ranked.admit, self._ranked.start

    def close(self) -> None:
        self._ranked.close()
        if self._processes is not None:
            self._processes.close()
        self._watch.close()
        self._collectives.close()

    def _exit_code(self, number: int) -> int | None:
        return None if self._processes is None else self._processes.exit_code(number)

    def _ended_early(self, number: int, code: int) -> None:
        """A process is gone; once it is connected to the watch, that one tells, and knows its last words."""
        if not self._watch.knows(number):
            fix = "look at that rank's own messages, then start again"
            self._tell(RanksLost(f"rank {number} ended with exit code {code} while it started", where=f"rank {number}", fix=fix))

    def _tell(self, error: RanksLost) -> None:
        if self._telling.acquire(blocking=False):  # of several losses only the first counts
            if self._processes is not None:
                self._processes.kill()
            self._lost(error)


_VISIBLE = {"cuda": "CUDA_VISIBLE_DEVICES", "hip": "HIP_VISIBLE_DEVICES"}


def bind_device(manifest: Manifest, local_rank: int) -> None:
    """Let this process see its own device alone, before any library looks: the one of its number among those it may see."""
    if manifest.device is None:
        return
    name = _VISIBLE[manifest.device.vendor]
    seen = [part for part in os.environ.get(name, "").split(",") if part]
    os.environ[name] = seen[local_rank] if local_rank < len(seen) else str(local_rank)
