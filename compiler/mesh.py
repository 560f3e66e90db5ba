"""From what a user asks for to the mesh: `--target NAME:DEVICES` and `--parallel`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod

from ..plans.errors import UsageError
from ..plans.schema import MeshAxis

AXES = ("tp",)
"""Axes there are, the outermost first: tensor parallelism."""

MAX_RANKS = 1024


def mesh_of(target: str, parallel: str) -> tuple[MeshAxis, ...]:
    """The mesh of a plan. "auto" lays the model out over all devices of the target; else axes with sizes, e.g. "tp=4".

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
    return tuple(MeshAxis(name=axis, size=sizes.get(axis, 1)) for axis in AXES)


def ranks_of(mesh: Sequence[MeshAxis]) -> int:
    return prod(axis.size for axis in mesh)


def _sizes(parallel: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in parallel.split(","):
        axis, _, size = part.strip().partition("=")
        if axis not in AXES or axis in found:
            expected = f"auto, or each of {', '.join(AXES)} at most once with its size, e.g. tp=4"
            raise UsageError("there is no such parallelism", where="--parallel", expected=expected, got=parallel)
        found[axis] = _size(size, "--parallel", "tp=4")
    return found


def _size(text: str, where: str, example: str) -> int:
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= MAX_RANKS:
        raise UsageError("this is no number of devices", where=where, expected=f"1 to {MAX_RANKS}, e.g. {example}", got=text)
    return int(text)
