"""The tier on disk, below the one in host memory: which units have a copy there, and what is on its way there and back.

Nothing of it rides on steps. What is to be done is told as jobs (`take_jobs`), which somebody else does in the background, in
any order, and tells when it is done.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from .blocks import FreeHostBlock, OffloadedBlock, Reuse, Unit
from .errors import SchedulerMisuse
from .order import Clock, EvictionOrder, standing
from .stored_blocks import FetchingBlock, FreePlace, StoredBlock, StoringBlock, found, store

MOST_STORES = 8
"""Units that are written at a time: whoever wants one of them back waits for that."""


@dataclass(frozen=True, slots=True)
class StoredUnit:
    """What a place on disk holds."""

    place: int
    digest: bytes
    parent: bytes
    tokens: bytes


@dataclass(frozen=True, slots=True)
class DiskJob:
    """Write blocks of the host, in this order, to a place as `unit`, or with `fetch` read them from there. Until it is done these
    blocks and the place are the job's."""

    number: int
    fetch: bool
    unit: StoredUnit
    host: tuple[int, ...]


class DiskTier:
    """`places` places, one for a unit each; to read from them is expected to bring `bytes_per_second`.

    Copies leave in the order of expected reuse, the least recently used first, and only for what is worth more, so that a full
    disk is not written for ever. `unstored` are units with a copy on the host, at rest there, and none on disk, in the order in
    which they are written. What was not worth its place is not looked at again before something happens to it.
    """

    def __init__(self, places: int, clock: Clock, bytes_per_second: float = inf) -> None:
        self.places, self.bytes_per_second, self._clock = places, bytes_per_second, clock
        self.free = [FreePlace(place) for place in reversed(range(places))]
        self.stored = EvictionOrder[StoredBlock](clock)
        self.unstored = EvictionOrder[Unit](clock)
        self.storing: dict[int, StoringBlock] = {}
        self.fetching: dict[int, FetchingBlock] = {}
        self.job_of: dict[Unit, int] = {}
        self.written_units = self.read_units = self.restored_units = self.refused_units = 0
        self._jobs: list[DiskJob] = []
        self._next_job = 0

    @property
    def in_flight(self) -> int:
        """Jobs that are not done."""
        return len(self.job_of)

    def restore(self, units: Iterable[StoredUnit], index: dict[bytes, Unit]) -> None:
        """What an earlier process left, what is to leave first before the others. Raises SchedulerMisuse for
        a place that is not there, or is told twice."""
        kept = {unit.digest: unit for unit in units}
        places = {unit.place for unit in kept.values()}
        if len(places) != len(kept) or not places <= {place.index for place in self.free}:
            raise SchedulerMisuse("units are restored from places that are not free")
        by_number = {place.index: place for place in self.free}
        self.free = [place for place in self.free if place.index not in places]
        for unit in kept.values():
            block = found(by_number[unit.place], unit.digest, unit.parent, unit.tokens)
            index[unit.digest] = block.unit
            self.stored.add(block.unit, block)
            self.restored_units += 1

    # What the host does with its copy of a unit.

    def hosted(self, unit: Unit) -> None:
        """There is one, at rest."""
        if unit.place < 0 and unit.reuse is not Reuse.GONE:
            self.unstored.add(unit, unit)

    def unhosted(self, unit: Unit) -> None:
        """There is none any more, or it is in transfer."""
        if unit in self.unstored:
            self.unstored.take(unit)

    def regarded(self, unit: Unit, hosted: bool) -> None:
        """The unit was used, or its expected reuse is another now; whether the host has a copy at rest."""
        if unit in self.stored:
            self.stored.add(unit, self.stored.take(unit))
        self.unhosted(unit)
        if hosted:
            self.hosted(unit)

    def forget(self, unit: Unit) -> None:
        """A unit is not to be found any more: its place is free."""
        if unit in self.stored:
            self.free.append(self.stored.take(unit).evict())

    # Jobs.

    def next_to_store(self) -> tuple[Unit, Unit | None] | None:
        """What is written next, for which there is a free place now; and the unit whose copy gave way, if one did."""
        while len(self.storing) < MOST_STORES and (unit := self.unstored.first()) is not None:
            if self.free:
                return unit, None
            if (lowest := self.stored.first()) is None:
                return None
            if self._worth(lowest.unit) < self._worth(unit):
                gone = lowest.unit
                self.free.append(self.stored.pop().evict())
                return unit, gone
            self.unstored.take(unit)
        return None

    def _worth(self, unit: Unit) -> tuple[int, int]:
        return standing(unit, self._clock.now), unit.used

    def store(self, copy: OffloadedBlock) -> None:
        """Begin to write what `next_to_store` gave."""
        unit, number = copy.unit, self._number(copy.unit)
        self.unhosted(unit)
        self.storing[number] = block = store(copy, self.free.pop())
        self._jobs.append(DiskJob(number, False, _named(unit, block.into), unit.host))

    def fetch(self, unit: Unit, into: list[FreeHostBlock]) -> None:
        """Begin to read a unit into blocks of the host."""
        number = self._number(unit)
        self.fetching[number] = block = self.stored.take(unit).fetch(into)
        self._jobs.append(DiskJob(number, True, _named(unit, unit.place), block.into))

    def _number(self, unit: Unit) -> int:
        number = self.job_of[unit] = self._next_job
        self._next_job += 1
        return number

    def take_jobs(self) -> list[DiskJob]:
        """Those that were not taken before."""
        jobs, self._jobs = self._jobs, []
        return jobs

    def end_store(self, number: int, well: bool) -> OffloadedBlock:
        """A write is over: the host has its copy back. One that failed is not tried again at once."""
        block = self.storing.pop(number)
        del self.job_of[block.unit]
        if not well:
            copy, place = block.fail()
            self.free.append(place)
            return copy
        copy, stored = block.done()
        self.stored.add(copy.unit, stored)
        self.written_units += 1
        return copy

    def end_fetch(self, number: int, well: bool, wanted: bool) -> tuple[OffloadedBlock | None, tuple[FreeHostBlock, ...]]:
        """A read is over; `wanted`: the host has no other copy. The host's new copy, and the blocks of it that hold none."""
        block = self.fetching.pop(number)
        unit = block.unit
        del self.job_of[unit]
        if not well:
            place, freed = block.fail()
            self.free.append(place)
            self.refused_units += 1
            return None, freed
        self.read_units += 1
        if wanted:
            stored, copy = block.done()
            self.stored.add(unit, stored)
            return copy, ()
        stored, freed = block.drop()
        self.stored.add(unit, stored)
        return None, freed


def _named(unit: Unit, place: int) -> StoredUnit:
    return StoredUnit(place, unit.digest, unit.parent, unit.tokens)
