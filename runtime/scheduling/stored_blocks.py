"""Units on disk with their state in the type, as in blocks.py: the host's copies are written there and come back from there.

    offloaded --store (with a free place)--> storing --done--> offloaded, and on disk stored --evict--> free place
    stored --fetch (with free host blocks)--> fetching --done--> stored, and on the host offloaded

What is in transfer belongs to the transfer, on both sides: it is neither loaded, nor evicted, nor written.
"""

from __future__ import annotations

from collections.abc import Sequence

from .blocks import FreeHostBlock, OffloadedBlock, PhysicalBlock, Unit, UnitHandle, taken
from .errors import SchedulerMisuse


class FreePlace(PhysicalBlock):
    """A place on disk, for one unit, that holds nothing."""

    __slots__ = ()


class StoringBlock(UnitHandle):
    """In transfer from the host to disk: the copy on the host is read, the place is written."""

    __slots__ = ("_into",)

    def __init__(self, unit: Unit, into: int) -> None:
        super().__init__(unit)
        self._into = into
        unit.storing = True

    @property
    def into(self) -> int:
        self.require()
        return self._into

    def done(self) -> tuple[OffloadedBlock, StoredBlock]:
        """There is a copy on disk."""
        self._end()
        self._unit.place = self._into
        return OffloadedBlock(self._unit), StoredBlock(self._unit)

    def fail(self) -> tuple[OffloadedBlock, FreePlace]:
        """There is none."""
        self._end()
        return OffloadedBlock(self._unit), FreePlace(self._into)

    def _end(self) -> None:
        self.consume()
        self._unit.storing = False


class StoredBlock(UnitHandle):
    """A unit's copy on disk, wherever else the unit is."""

    __slots__ = ()

    def fetch(self, into: Sequence[FreeHostBlock]) -> FetchingBlock:
        """Begin to bring a unit that the host does not have back into these blocks of it."""
        if self.unit.host:
            raise SchedulerMisuse("the host has this unit")
        blocks = taken(into)
        self.consume()
        return FetchingBlock(self._unit, blocks)

    def evict(self) -> FreePlace:
        self.consume()
        return _left(self._unit)


class FetchingBlock(UnitHandle):
    """In transfer from disk to the host."""

    __slots__ = ("_into",)

    def __init__(self, unit: Unit, into: tuple[int, ...]) -> None:
        super().__init__(unit)
        self._into = into

    @property
    def into(self) -> tuple[int, ...]:
        self.require()
        return self._into

    def done(self) -> tuple[StoredBlock, OffloadedBlock]:
        """There is a copy on the host."""
        if self.unit.host:
            raise SchedulerMisuse("the host has this unit")
        self.consume()
        self._unit.host = self._into
        return StoredBlock(self._unit), OffloadedBlock(self._unit)

    def drop(self) -> tuple[StoredBlock, tuple[FreeHostBlock, ...]]:
        """It was computed again meanwhile and went to the host: one copy there is enough."""
        blocks = self._give_back()
        return StoredBlock(self._unit), blocks

    def fail(self) -> tuple[FreePlace, tuple[FreeHostBlock, ...]]:
        """It could not be read, or is not what it was: the copy is not trusted again."""
        blocks = self._give_back()
        return _left(self._unit), blocks

    def _give_back(self) -> tuple[FreeHostBlock, ...]:
        self.consume()
        return tuple(FreeHostBlock(index) for index in self._into)


def store(copy: OffloadedBlock, into: FreePlace) -> StoringBlock:
    """Offloaded -> storing: begin a copy to disk. Consumes both."""
    unit, (place,) = copy.unit, taken([into])
    copy.consume()
    return StoringBlock(unit, place)


def found(place: FreePlace, digest: bytes, parent: bytes, tokens: bytes) -> StoredBlock:
    """Free -> stored: a unit that an earlier process left there."""
    unit, (number,) = Unit(digest, parent, tokens, ()), taken([place])
    unit.place = number
    return StoredBlock(unit)


def _left(unit: Unit) -> FreePlace:
    """The unit's copy leaves the disk."""
    place, unit.place = unit.place, -1
    return FreePlace(place)
