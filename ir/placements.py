"""How a value lies on one mesh axis: replicated, cut, as parts of a sum, or with rows of each rank's own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

REPLICATE, PARTIAL, OWN = "replicate", "partial", "own"

DISPATCHED = "dispatched"
"""Of rows of which a rank has those that its experts are for: the others are undefined."""

GROUPS = "dp"
"""The axis along which each rank has a step of its own: inputs are its own, in number too, and so is what is made of them row by
row. There a value that is replicated has the rows of all ranks behind each other, as many of each."""


def at_rest(shape: Sequence[int | None], axis: str) -> str:
    """How values of this shape come into a step and leave it on an axis."""
    return OWN if axis == GROUPS and None in shape else REPLICATE


def part_of(axis: str, dimension: int) -> str:
    """A rank's part of what all ranks of an axis have, along a dimension: of rows of groups, its own."""
    return OWN if axis == GROUPS and dimension == 0 else str(Shard(dimension))


NESTING = ("pp", "dp", "ep", "tp")
"""Mesh axes, the outermost first. Where several cut one dimension, each cuts what the axes before it have left of it."""

_SHARD = re.compile(r"shard\((\d+)(?:, copies=(\d+))?(?:, segments=(\d+(?:\*\d+)?(?:\+\d+(?:\*\d+)?)*))?\)")


@dataclass(frozen=True)
class Segment:
    """A stretch of a cut dimension by the `size` that each rank has of it in the end, whichever axes cut it; `copies`
    neighbouring ranks have the same part."""

    size: int
    copies: int = 1

    def __str__(self) -> str:
        return f"{self.size}*{self.copies}" if self.copies > 1 else str(self.size)


@dataclass(frozen=True)
class Shard:
    """Cut along `dimension` into equal parts, a part for each rank; the last ones end in zeros where ranks do not divide it.

    `copies` neighbouring ranks have the same part: key/value heads of which there are fewer than ranks. Where the dimension
    is several things behind each other, such as gate and up, each is cut by itself: `segments`, and then no `copies`.
    """

    dimension: int
    copies: int = 1
    segments: tuple[Segment, ...] = ()

    def __str__(self) -> str:
        copies = f", copies={self.copies}" if self.copies > 1 else ""
        segments = f", segments={'+'.join(map(str, self.segments))}" if self.segments else ""
        return f"shard({self.dimension}{copies}{segments})"

    def along(self, dimension: int) -> Shard:
        """The same cut of another dimension."""
        return replace(self, dimension=dimension)

    def local_size(self, size: int, ranks: int) -> int:
        """What a rank has of a dimension of this size."""
        if self.segments:
            return sum(segment.size for segment in self.segments)
        return -(-size * self.copies // ranks)


def parse_shard(placement: str) -> Shard | None:
    """The cut that a placement says; None for the other placements and for what is none."""
    found = _SHARD.fullmatch(placement)
    if found is None:
        return None
    dimension, copies, listed = found.groups()
    segments = tuple(_segment(text) for text in listed.split("+")) if listed else ()
    cut = Shard(int(dimension), int(copies or 1), segments)
    return cut if str(cut) == placement and not (segments and cut.copies > 1) else None


def _segment(text: str) -> Segment:
    size, _, copies = text.partition("*")
    return Segment(int(size), int(copies or 1))


def local_shape(shape: Sequence[int | None], placement: str, ranks: int) -> tuple[int | None, ...]:
    """A rank's part of a value of this shape on an axis of so many ranks; rows stay a symbol (ir/rows.py says of what)."""
    cut = parse_shard(placement)
    if cut is None:
        return tuple(shape)
    size = shape[cut.dimension]
    if size is None:
        return tuple(shape)
    return (*shape[: cut.dimension], cut.local_size(size, ranks), *shape[cut.dimension + 1 :])


def with_axis(known: Mapping[str, str], axis: str, placement: str) -> dict[str, str]:
    """The placement of a value that lies as `known` on other axes and is now cut on one more, inside of those."""
    found = dict(known)
    cut = parse_shard(placement)
    for other, where in known.items():
        before = parse_shard(where)
        if cut is not None and before is not None and before.dimension == cut.dimension and before.segments:
            sizes = zip(before.segments, cut.segments, strict=True)
            segments = tuple(Segment(now.size, then.copies) for then, now in sizes)
            found[other] = str(replace(before, segments=segments))
    return found | {axis: placement}


def disagreement(placements: Mapping[str, str]) -> str | None:
    """What is wrong where several axes cut one dimension: they have the same segments, as each rank has them in the end."""
    seen: dict[int, tuple[str, list[int]]] = {}
    for axis, placement in placements.items():
        cut = parse_shard(placement)
        if cut is None:
            continue
        sizes = [segment.size for segment in cut.segments]
        other, expected = seen.setdefault(cut.dimension, (axis, sizes))
        if sizes != expected:
            return f"dimension {cut.dimension} has segments {sizes} on {axis} and {expected} on {other}"
    return None
