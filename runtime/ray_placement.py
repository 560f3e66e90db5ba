"""Where the ranks of a plan go on a Ray cluster: neighbours of the mesh on one host. No Ray here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from ..plans.errors import UsageError
from ..plans.schema import MeshAxis

DEVICE, CORE = "GPU", "CPU"
"""What Ray calls them, AMD's devices too."""

Strategy = Literal["STRICT_PACK", "PACK"]


@dataclass(frozen=True)
class RankGroup:
    """Ranks that Ray is asked for together, and how: on one host, or on as few as there are."""

    ranks: tuple[int, ...]
    strategy: Strategy


def rank_groups(mesh: Sequence[MeshAxis], hosts: Sequence[int], resource: str) -> list[RankGroup]:
    """The ranks of a mesh as groups that each fit a host, where `hosts` have so many of `resource` each.

    A group is all ranks along as many of the innermost axes as fit the largest host, so that tensor parallelism stays within
    hosts, and stages or groups with sequences of their own may go to different ones. Where the innermost axis alone does not fit,
    all ranks are one group. Raises UsageError when there are too few.
    """
    count = prod(axis.size for axis in mesh)
    if sum(hosts) < count:
        raise UsageError(
            "the Ray cluster has too few devices for the plan" if resource == DEVICE else "the Ray cluster has too few cores",
            where="--ray",
            expected=f"{count} {resource}, one for each rank",
            got=f"{sum(hosts)} on {len(hosts)} hosts",
            fix="add hosts to the cluster, or compile for fewer devices",
        )
    together = 1
    for axis in reversed(mesh):
        if together * axis.size > max(hosts):
            break
        together *= axis.size
    if sum(host // together for host in hosts) * together < count or together == 1 < count:
        return [RankGroup(tuple(range(count)), "PACK")]
    return [RankGroup(tuple(range(start, start + together)), "STRICT_PACK") for start in range(0, count, together)]
