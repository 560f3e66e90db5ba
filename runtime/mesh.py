"""A rank's place in a plan's mesh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from ..plans.mesh import GROUPS, STAGES
from ..plans.schema import MeshAxis


@dataclass(frozen=True)
class Rank:
    """One of the processes that run a plan together, by its number: coordinates count like digits, the last axis fastest.

    `beside` are the ranks that read weights from the same files on the same host, as far as that is known.
    """

    mesh: tuple[MeshAxis, ...]
    number: int = 0
    beside: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        return prod(axis.size for axis in self.mesh)

    @property
    def neighbours(self) -> list[Mapping[str, int]]:
        """The coordinates of this rank and of those beside it that load the same weights or other parts of them, in order."""
        stage = self.coordinates.get(STAGES)
        places = (_coordinates(self.mesh, number) for number in sorted({self.number, *self.beside}))
        return [place for place in places if place.get(STAGES) == stage]

    @property
    def coordinates(self) -> Mapping[str, int]:
        """This rank's place on each axis."""
        return _coordinates(self.mesh, self.number)

    @property
    def group(self) -> int:
        """Which group this rank is of."""
        return self.coordinates.get(GROUPS, 0)

    @property
    def reporters(self) -> tuple[int, ...]:
        """By group, the rank that tells what the group's sequences sampled: the first of those that have the logits."""
        found: dict[int, int] = {}
        last = next((axis.size - 1 for axis in self.mesh if axis.name == STAGES), 0)
        for number in range(self.count):
            place = _coordinates(self.mesh, number)
            if place.get(STAGES, 0) == last:
                found.setdefault(place.get(GROUPS, 0), number)
        return tuple(found[group] for group in sorted(found))

    def peers(self, axis: str) -> list[list[int]]:
        """The ranks that meet along an axis, group by group, each in the order of their coordinates."""
        groups: dict[tuple[tuple[str, int], ...], list[int]] = {}
        for number in range(self.count):
            others = tuple((name, place) for name, place in _coordinates(self.mesh, number).items() if name != axis)
            groups.setdefault(others, []).append(number)
        return list(groups.values())


def _coordinates(mesh: Sequence[MeshAxis], number: int) -> dict[str, int]:
    found: dict[str, int] = {}
    for axis in reversed(mesh):
        number, found[axis.name] = divmod(number, axis.size)
    return found
