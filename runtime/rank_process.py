"""A rank other than the first, as a process: `python -m tokenspeed.runtime.rank_process OPTIONS`, started by the first alone."""

from __future__ import annotations

import os
import signal
import sys
from functools import partial

import msgspec

from ..plans.errors import TokenspeedError
from ..plans.integrity import ranks
from ..plans.reader import Plan
from .device.opening import begin_to_open
from .engine_process import check_same_plan, exit_with_parent
from .first_rank import bind_device
from .launcher import Launched
from .mesh import Rank
from .openmp import bound_spinning
from .parent_death import end_with_parent
from .rank_watch import RanksLost
from .watched_rank import WatchedRank


class RankOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The one command-line argument, as JSON: what the first rank was told, this one's number, where the first one's store is."""

    plan: str
    plan_id: str
    weights: str | None
    threads: int | None
    step_timeout: float
    verify: bool
    rank: int
    address: str


def run(options: RankOptions) -> int:
    """Load, then do what the first rank does until it says stop; the process's exit code."""
    try:
        with Plan.open(options.plan) as plan:
            check_same_plan(plan, options.plan, options.plan_id)
            count = ranks(plan.manifest)
            place = Launched(options.rank, options.rank, count, options.address, False, tuple(range(count)))
            take_part(plan, options.weights, options.threads, place, options.step_timeout, options.verify)
            return 0
    except TokenspeedError as error:
        print(f"rank {options.rank}: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:  # the process boundary
        print(f"rank {options.rank}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1


def take_part(plan: Plan, weights: str | None, threads: int | None, place: Launched, step_timeout: float, verify: bool) -> None:
    """Be the rank of `place` until the first rank says stop; with `verify`, replay goldens before.

    Raises a TokenspeedError when the plan cannot be loaded, RuntimeError when ranks do not meet. Ends the process when the first
    rank is gone.
    """
    bind_device(plan.manifest, place.local_rank)
    if plan.manifest.device is not None:
        begin_to_open(plan.manifest.device.vendor)
    bound_spinning()  # before torch is loaded
    from .collectives import Collectives, backend_of
    from .executor import load_executor
    from .ranked_executor import follow

    rank = Rank(plan.manifest.mesh, place.rank, place.beside)
    collectives = Collectives(rank, backend_of(plan.manifest), place.address, step_timeout=step_timeout)
    watched = WatchedRank(place.rank, collectives.host, collectives.watch_address(), step_timeout, partial(_gone, place.rank))
    try:
        collectives.agree(plan.plan_id)
        if verify:
            from .goldens import verify_goldens

            verify_goldens(plan, weights, lambda _what: None, collectives)
        executor = load_executor(
            plan, weights, threads or place.threads, lambda _phase: None, collectives=collectives, host_tier=True
        )
        collectives.meet()
        follow(executor, collectives, watched.began)
    except Exception as error:
        watched.failed(f"{type(error).__name__}: {error}")
        raise
    watched.close()
    executor.close()
    collectives.close()


def _gone(rank: int, what: str) -> None:
    """From another thread: the one that runs steps may wait for ever."""
    print(f"rank {rank}: {what}", file=sys.stderr, flush=True)
    os._exit(RanksLost.exit_code)


def main() -> int:
    # the first rank ends this one by its own means
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with_parent()
    exit_with_parent()
    return run(msgspec.json.decode(sys.argv[1], type=RankOptions))


if __name__ == "__main__":
    sys.exit(main())
