"""A rank other than the first, as a process: `python -m tokenspeed.runtime.rank_process OPTIONS`, started by the first alone."""

from __future__ import annotations

import signal
import sys

import msgspec

from ..plans.errors import TokenspeedError
from ..plans.reader import Plan
from .engine_process import check_same_plan, exit_with_parent
from .first_rank import bind_device
from .mesh import Rank
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
            take_part(plan, options.weights, options.threads, options.rank, options.rank, options.address)
            return 0
    except TokenspeedError as error:
        print(f"rank {options.rank}: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:  # the process boundary
        print(f"rank {options.rank}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1


def take_part(plan: Plan, weights: str | None, threads: int | None, number: int, local: int, address: str) -> None:
    """Be rank `number`, the `local`-th of this host, until the first rank says stop.

    Raises a TokenspeedError when the plan cannot be loaded, RuntimeError when the first rank is gone.
    """
    bind_device(plan.manifest, local)
    bound_spinning()  # before torch is loaded
    from .collectives import Collectives, backend_of
    from .executor import load_executor
    from .ranked_executor import follow

    collectives = Collectives(Rank(plan.manifest.mesh, number), backend_of(plan.manifest), address)
    collectives.agree(plan.plan_id)
    executor = load_executor(plan, weights, threads, lambda _phase: None, collectives=collectives)
    collectives.meet()
    follow(executor, collectives)
    executor.close()
    collectives.close()


def main() -> int:
    # the first rank ends this one by its own means
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    exit_with_parent()
    return run(msgspec.json.decode(sys.argv[1], type=RankOptions))


if __name__ == "__main__":
    sys.exit(main())
