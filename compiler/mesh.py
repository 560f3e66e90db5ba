"""From what a user asks for to the mesh: `--target NAME:DEVICES` and `--parallel`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from ..plans.errors import UsageError
from ..plans.mesh import STAGES
from ..plans.schema import MeshAxis


@dataclass(frozen=True)
class Axis:
    """A way of sharing a model out among ranks. `works`: whether anything lays models out along it yet."""

    name: str
    meaning: str
    works: bool


AXES = (
    Axis("pp", "pipeline: consecutive layers on each rank", works=True),
    Axis("dp", "groups of ranks, each with sequences of its own; attention and dense layers whole in each", works=True),
    Axis("ep", "experts: whole experts on each rank, the rest cut as along tp", works=True),
    Axis("tp", "tensors: a part of each matrix and of its heads on each rank", works=True),
)
"""Axes there are, the outermost first: ranks along the last one are the closest devices."""

ONE_RANK = (MeshAxis(name="tp", size=1),)

MAX_RANKS = 1024


def mesh_of(target: str, parallel: str) -> tuple[MeshAxis, ...]:
    """The mesh of a plan: axes of several ranks, outermost first; of one rank, tp alone. "auto" lays the model out over all
    devices of the target; else axes with sizes, e.g. "tp=4".

    Raises UsageError for an axis or a size that there is not, and where the sizes multiplied are not the target's devices.
    """
    _, _, count = target.partition(":")
    devices = _size(count, "--target", f"{target.partition(':')[0]}:8") if count else None
    sizes = {} if parallel == "auto" else _sizes(parallel)
    if not sizes:
        sizes = {"tp": devices or 1}
    ranks = prod(sizes.values())
    if devices is not None and ranks != devices:
        raise UsageError(
            "the axes do not use every device of the target",
            where="--parallel",
            expected=f"sizes whose product is {devices}",
            got=parallel,
            fix=f"--parallel auto, or --target {target.partition(':')[0]}:{ranks}",
        )
    found = tuple(MeshAxis(name=axis.name, size=sizes[axis.name]) for axis in AXES if sizes.get(axis.name, 1) > 1)
    return found or ONE_RANK


def without_stages(mesh: Sequence[MeshAxis]) -> tuple[MeshAxis, ...]:
    """The mesh of each stage."""
    return tuple(axis for axis in mesh if axis.name != STAGES) or ONE_RANK


def ranks_of(mesh: Sequence[MeshAxis]) -> int:
    return prod(axis.size for axis in mesh)


def _sizes(parallel: str) -> dict[str, int]:
    working = [axis.name for axis in AXES if axis.works]
    expected = f"auto, or each of {', '.join(working)} at most once with its size, e.g. tp=4"
    found: dict[str, int] = {}
    for part in parallel.split(","):
        name, _, size = part.strip().partition("=")
        axis = next((axis for axis in AXES if axis.name == name), None)
        if axis is None or name in found:
            raise UsageError("there is no such parallelism", where="--parallel", expected=expected, got=parallel)
        found[name] = _size(size, "--parallel", f"{name}=4")
        if not axis.works and found[name] > 1:
            raise UsageError(f"nothing lays models out along {name} yet", where="--parallel", expected=expected, got=parallel)
    return found


def _size(text: str, where: str, example: str) -> int:
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= MAX_RANKS:
        raise UsageError("this is no number of devices", where=where, expected=f"1 to {MAX_RANKS}, e.g. {example}", got=text)
    return int(text)
