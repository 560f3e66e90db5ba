"""The tier of a pool in host memory: which units have a copy there, and which copies launched steps carry either way."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .blocks import FreeBlock, FreeHostBlock, LoadingBlock, OffloadedBlock, Reuse, SavingBlock, SealedBlock, Unit
from .disk_tier import DiskTier
from .order import Clock, EvictionOrder, standing


class WaitingLoad(NamedTuple):
    """A load that no step carries yet; loads leave in the order of `place`."""

    place: int
    block: LoadingBlock


class HostTier:
    """`blocks` blocks on the host, `unit_blocks` of them for a unit.

    Copies leave in this order: those of units that nobody will want again; *spare* ones, which the device has taken up again,
    the newest first, because the device is to evict these last; then by expected reuse, the least recently used first.
    `unsaved` are cached units that are to have a copy and have none yet, `saved` all other cached ones, each in the order in
    which the device evicts them; `fresh` are units in use without a copy. A load waits for a step, then boards the one that is
    being planned, then is under way until that step is complete. `lent` are copies that are being written to the tier below,
    `disk`, and whether they were spare.
    """

    def __init__(self, blocks: int, unit_blocks: int, clock: Clock) -> None:
        self.blocks, self.unit_blocks, self._clock = blocks, unit_blocks, clock
        self.free = [FreeHostBlock(index) for index in reversed(range(blocks))]
        self.copies = EvictionOrder[OffloadedBlock](clock)
        self.spare: OrderedDict[Unit, OffloadedBlock] = OrderedDict()
        self.unsaved, self.saved = EvictionOrder[Unit](clock), EvictionOrder[Unit](clock)
        self.fresh: OrderedDict[Unit, None] = OrderedDict()
        self.waiting: OrderedDict[Unit, WaitingLoad] = OrderedDict()
        self.boarding: list[LoadingBlock] = []
        self.loading: dict[int, list[LoadingBlock]] = {}
        self.saving: dict[int, list[SavingBlock]] = {}
        self.put_back: set[Unit] = set()
        self.arriving: dict[Unit, LoadingBlock] = {}
        self.disk: DiskTier | None = None
        self.lent: dict[Unit, bool] = {}
        self._next_place = 0
        self._room = 0

    # What the device does with a unit.

    def sealed(self, unit: Unit) -> None:
        """A unit of the index is in use; it was computed just now."""
        if unit.host:
            self._make_spare(unit)
        else:
            self.fresh[unit] = None

    def taken(self, unit: Unit) -> None:
        """A cached unit is in use again."""
        self._uncached(unit)
        self.sealed(unit)

    def cached(self, unit: Unit, first: bool) -> None:
        """Nobody uses a unit of the index any more; `first`: the device evicts it next."""
        self.fresh.pop(unit, None)
        self._uncached(unit)
        (self.saved if unit.host or unit.reuse is Reuse.GONE else self.unsaved).add(unit, unit, first)

    def _uncached(self, unit: Unit) -> None:
        self.unsaved.discard(unit)
        self.saved.discard(unit)

    def next_evicted(self, save_first: bool) -> Unit | None:
        """What the device is to evict next. With `save_first` what is lost by that goes last, unless nothing is expected of it;
        else by kind. Of a kind, what is saved has been unused for longer."""
        saved, unsaved = self.saved.lowest(), self.unsaved.lowest()
        if saved is None or (unsaved is not None and unsaved < saved and (unsaved <= Reuse.IDLE or not save_first)):
            return self.unsaved.first()
        return self.saved.first()

    def evicted(self, unit: Unit) -> bool:
        """The device has it no more; whether the host has it, or the disk."""
        self._uncached(unit)
        if unit in self.spare:
            self.copies.add(unit, self.spare.pop(unit))
        elif unit in self.lent:
            self.lent[unit] = False
        return bool(unit.host) or unit.place >= 0

    def regarded(self, unit: Unit, cached: bool) -> None:
        """Its expected reuse is another now; whether it is cached."""
        if unit in self.copies:
            self.copies.add(unit, self.copies.take(unit))
        if cached:
            self.cached(unit, False)
        if self.disk is not None:
            self.disk.regarded(unit, unit in self.copies or unit in self.spare)

    def _make_spare(self, unit: Unit) -> None:
        if unit in self.copies:
            self.spare[unit] = self.copies.take(unit)
        elif unit in self.lent:
            self.lent[unit] = True

    def given_back(self, unit: Unit) -> None:
        """The last sequence that used it does not use it any more."""
        if self.disk is not None:
            self.disk.regarded(unit, unit in self.spare)

    # Copies at rest.

    def rest(self, copy: OffloadedBlock, spare: bool) -> None:
        """A copy is there, or there again; `spare`: it is given up first."""
        if spare:
            self.spare[copy.unit] = copy
        else:
            self.copies.add(copy.unit, copy)
        if self.disk is not None:
            self.disk.hosted(copy.unit)

    def _left(self, unit: Unit) -> None:
        """A copy is gone, or in transfer."""
        if self.disk is not None:
            self.disk.unhosted(unit)

    def forget(self, unit: Unit) -> None:
        """A unit is not to be found any more."""
        if self.disk is not None:
            self.disk.forget(unit)

    # Loads.

    def load(self, unit: Unit, into: Sequence[FreeBlock]) -> SealedBlock:
        """Bring a unit back for its first user."""
        block = self.copies.take(unit).load(into)
        self._left(unit)
        self.waiting[unit] = WaitingLoad(self._next_place, block)
        self.arriving[unit] = block
        self._next_place += 1
        return block.share()

    def share(self, unit: Unit) -> SealedBlock:
        """Wait with others, or alone, for a unit that is arriving."""
        return self.arriving[unit].share()

    def place(self, unit: Unit) -> int:
        """The place of a load in the queue; -1 when it has left."""
        return self.waiting[unit].place if unit in self.waiting else -1

    def has_left(self, place: int) -> bool:
        """Whether all loads up to this place have a step that carries them."""
        return not self.waiting or next(iter(self.waiting.values())).place > place

    def cancel(self, unit: Unit) -> tuple[FreeBlock, ...]:
        """Nobody waits for this unit any more: its blocks on the device, unless a step carries it already."""
        if unit not in self.waiting:
            return ()
        copy, freed = self.waiting.pop(unit).block.cancel()
        del self.arriving[unit]
        self.rest(copy, False)
        return freed

    def begin_step(self, units: int) -> None:
        """A step is planned that carries at most so many loads; one at least, so that who waits gets on."""
        self._room = max(1, units) - len(self.boarding)
        self.board()

    def board(self) -> None:
        """Put what waits on the step that is being planned, as far as there is room."""
        while self._room > 0 and self.waiting:
            _, waiting = self.waiting.popitem(last=False)
            self.boarding.append(waiting.block)
            self._room -= 1

    # Saves.

    def room(self, reuse: Reuse, evict: bool) -> bool:
        """Whether there is room for a copy of what is saved next of a kind; by eviction of what is worth no more, if allowed, but
        not of a unit that has been unused on the device for longer: it needs its copy first."""
        lowest, first = self.copies.lowest(), self.copies.first()
        if len(self.free) >= self.unit_blocks or lowest is Reuse.GONE:
            return True
        if not evict or self.spare:
            return evict and not self._goes_before(next(reversed(self.spare)), reuse)
        if first is None or (self.disk is not None and first.unit in self.disk.unstored):
            return False  # it is to be written to disk first
        assert lowest is not None
        return lowest <= reuse and not self._goes_before(first.unit, reuse)

    def _goes_before(self, unit: Unit, reuse: Reuse) -> bool:
        """Whether the device has a unit that nobody uses, of this kind, and unused for longer than what is saved next of it."""
        next_saved = self.unsaved.first(reuse)
        assert next_saved is not None
        return unit in self.saved and standing(unit, self._clock.now) is reuse and unit.used <= next_saved.used

    def soon_saved(self) -> int:
        """Cached units of which something is expected and that have no copy yet, but can have one."""
        return sum(count for reuse, count in self.unsaved.kinds() if reuse > Reuse.IDLE and self.room(reuse, evict=True))

    def evict(self) -> Unit:
        """Give one copy up: the unit it was of."""
        spare = self.spare and self.copies.lowest() is not Reuse.GONE
        block = self.spare.popitem()[1] if spare else self.copies.pop()
        unit = block.unit
        self._left(unit)
        self.free.extend(reversed(block.evict()))
        return unit

    def save(self, share: SealedBlock, saves: list[SavingBlock]) -> None:
        """Let the step that is being planned copy a unit; there is room."""
        saves.append(share.save([self.free.pop() for _ in range(self.unit_blocks)]))

    # Copies on their way to disk and back.

    def lend(self, unit: Unit) -> OffloadedBlock:
        """A copy at rest, to be written to disk."""
        self.lent[unit] = unit in self.spare
        return self.spare.pop(unit) if unit in self.spare else self.copies.take(unit)

    def returned(self, copy: OffloadedBlock) -> None:
        """It is written, or could not be."""
        spare = self.lent.pop(copy.unit)
        if spare:
            self.spare[copy.unit] = copy
        else:
            self.copies.add(copy.unit, copy)

    def fetched(self, copy: OffloadedBlock) -> None:
        """A copy came from disk."""
        unit = copy.unit
        self.fresh.pop(unit, None)
        if unit in self.unsaved:
            self.saved.add(unit, self.unsaved.take(unit))
        self.rest(copy, bool(unit.users))

    # Steps.

    def launch(self, step_id: int, saves: list[SavingBlock]) -> list[LoadingBlock]:
        """The planned step carries these saves, and the loads that boarded."""
        loads, self.boarding = self.boarding, []
        if saves:
            self.saving[step_id] = saves
        if loads:
            self.loading[step_id] = loads
        return loads

    def arrive(self, unit: Unit) -> None:
        """A load of this unit is over."""
        del self.arriving[unit]

    def in_transfer(self) -> Iterator[LoadingBlock | SavingBlock]:
        """What steps carry or are to carry."""
        for saves in self.saving.values():
            yield from saves
        yield from self.boarding
        for loads in self.loading.values():
            yield from loads

    def returning(self) -> Iterator[Unit]:
        """Units that will be cached, or free, when launched steps are complete, because no sequence uses them."""
        return (block.unit for block in self.in_transfer() if not block.unit.readers)
