"""What a launcher such as torchrun says in the environment: which rank this process is, and where the ranks meet."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from ..plans.errors import UsageError
from ..plans.integrity import ranks
from ..plans.schema import Manifest

HOST_RANKS = "TOKENSPEED_HOST_RANKS"
"""Environment variable with the ranks of this host, where they are not numbered one after another: "0,2"."""

_NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launched:
    """This process is the `local_rank`-th of `local_ranks` on its host. `address` is host:port of the store that the ranks meet
    at; `serves_store` whether the launcher serves it itself. `beside` are the ranks of this host, if it is known which these are.
    """

    rank: int
    local_rank: int
    local_ranks: int
    address: str
    serves_store: bool
    beside: tuple[int, ...] = ()

    @property
    def threads(self) -> int:
        """This process's share of the cores that it may use, at least one."""
        return max(1, len(os.sched_getaffinity(0)) // self.local_ranks)


def launched(manifest: Manifest, environment: Mapping[str, str] = os.environ) -> Launched | None:
    """None where no launcher started this process, or the plan is for one rank.

    Raises UsageError when there are not as many processes as the plan has ranks.
    """
    count = ranks(manifest)
    if count == 1 or any(name not in environment for name in _NAMES):
        return None
    if environment["WORLD_SIZE"] != str(count):
        raise UsageError(
            "the launcher did not start one process for each rank of the plan",
            where="WORLD_SIZE",
            expected=str(count),
            got=environment["WORLD_SIZE"],
            fix=f"torchrun --nproc-per-node {count} -m tokenspeed.runtime PLAN, or several nodes with {count} processes in all",
        )
    rank = int(environment["RANK"])
    known, listed = "LOCAL_RANK" in environment and "LOCAL_WORLD_SIZE" in environment, environment.get(HOST_RANKS)
    local_rank, local_ranks = int(environment.get("LOCAL_RANK", rank)), int(environment.get("LOCAL_WORLD_SIZE", count))
    counted = tuple(range(rank - local_rank, rank - local_rank + local_ranks)) if known else ()
    return Launched(
        rank=rank,
        local_rank=local_rank,
        local_ranks=local_ranks,
        address=f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}",
        serves_store=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        beside=tuple(map(int, listed.split(","))) if listed else counted,
    )
