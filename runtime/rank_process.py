"""A rank other than the first, as a process: `python -m tokenspeed.runtime.rank_process OPTIONS`, started by the first alone."""

from __future__ import annotations

import os
import signal
import sys

import msgspec

from ..plans.errors import TokenspeedError
from ..plans.reader import Plan
from .engine_process import check_same_plan, exit_with_parent
from .first_rank import bind_device
from .openmp import bound_spinning


class RankOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The one command-line argument, as JSON: what the first rank was told, this one's number, where the first one's store is."""

    plan: str
    plan_id: str
    weights: str | None
    threads: int | None
    rank: int
    address: str


def run(options: RankOptions) -> int:
    """Load, then do what the first rank does until it says stop; the process's exit code."""
    try:
        with Plan.open(options.plan) as plan:
            check_same_plan(plan, options.plan, options.plan_id)
            bind_device(plan.manifest, int(os.environ.get("LOCAL_RANK", options.rank)))
            bound_spinning()  # before torch is loaded
            from .collectives import Collectives, backend_of
            from .executor import load_executor
            from .mesh import Rank
            from .ranked_executor import follow

            rank = Rank(plan.manifest.mesh, options.rank)
            collectives = Collectives(rank, backend_of(plan.manifest), options.address)
            executor = load_executor(plan, options.weights, options.threads, lambda _phase: None, collectives=collectives)
            collectives.meet()
            follow(executor, collectives)
            executor.close()
            collectives.close()
            return 0
    except TokenspeedError as error:
        print(f"rank {options.rank}: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:  # the process boundary
        print(f"rank {options.rank}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1


def main() -> int:
    # the first rank ends this one by its own means
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    exit_with_parent()
    return run(msgspec.json.decode(sys.argv[1], type=RankOptions))


if __name__ == "__main__":
    sys.exit(main())
