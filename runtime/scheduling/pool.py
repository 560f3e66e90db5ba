"""One pool of physical blocks: free ones, and identity units by digest, in use, cached, or on the host."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

import numpy as np

from .blocks import CachedBlock, FreeBlock, SavingBlock, SealedBlock, Unit, WritableBlock, restore, seal
from .disk_tier import DiskJob, DiskTier
from .host_tier import HostTier
from .order import Clock, EvictionOrder
from .step import BlockCopies

READY_SHARE = 0.25
"""Of a pool, what is free or cached with a copy on a full host: below that, units are saved at the cost of other copies."""


class BlockPool:
    """`blocks` physical blocks, `unit_blocks` of them for an identity unit, and `host_blocks` on the host (0: no tier).

    With `share` false nothing is ever found or kept. `number` is the pool's in docs/scheduling.md. With
    `save_first`, where there is a tier, what has no copy there yet is evicted last; `awaited` blocks are to have one soon.
    """

    def __init__(self, number: int, blocks: int, unit_blocks: int, host_blocks: int, share: bool, clock: Clock) -> None:
        self.number, self.blocks, self.unit_blocks, self.shares = number, blocks, unit_blocks, share
        self.free = [FreeBlock(index) for index in reversed(range(blocks))]
        self.cached = EvictionOrder[CachedBlock](clock)
        self.index: dict[bytes, Unit] = {}
        self.tier = HostTier(host_blocks, unit_blocks, clock) if host_blocks and share else None
        self.save_first, self.awaited = False, 0
        self.evictions = self.saved_units = self.loaded_units = self._uses = 0

    @property
    def available(self) -> int:
        """Blocks that can be written now: free ones and evictable ones."""
        return len(self.free) + len(self.cached) * self.unit_blocks

    def would_lose(self, blocks: int, keep: Sequence[Unit]) -> bool:
        """Whether so many blocks can be taken, while these units are kept, only if something is evicted that could have a copy
        soon."""
        if self.tier is None or not self.save_first or not (soon := self.tier.soon_saved()):
            return False
        soon -= sum(unit in self.tier.unsaved for unit in keep)
        others = len(self.cached) - sum(unit in self.cached for unit in keep)
        return blocks > len(self.free) + (others - max(soon, 0)) * self.unit_blocks

    def await_copies(self, blocks: int, keep: Sequence[Unit]) -> None:
        """Let the next step make copies until so many blocks could be taken without loss beside these units."""
        kept = sum(unit in self.cached for unit in keep)
        self.awaited = max(self.awaited, blocks + kept * self.unit_blocks)

    @property
    def copied_or_free(self) -> int:
        """Blocks that can be taken without loss, now or when the launched steps have made their copies."""
        under_way = 0 if self.tier is None else sum(1 for _ in self.tier.returning())
        unsaved = 0 if self.tier is None else len(self.tier.unsaved)
        return len(self.free) + (len(self.cached) - unsaved + under_way) * self.unit_blocks

    def find(self, digest: bytes, parent: bytes, tokens: bytes) -> Unit | None:
        unit = self.index.get(digest)
        return unit if unit is not None and unit.matches(parent, tokens) else None

    def take_free(self) -> FreeBlock:
        if not self.free:
            unit = self.tier.next_evicted(self.save_first) if self.tier is not None else None
            evicted = self.cached.pop() if unit is None else self.cached.take(unit)
            unit = evicted.unit
            self.free.extend(reversed(evicted.evict()))
            self.evictions += 1
            if self.tier is None or not self.tier.evicted(unit):
                del self.index[unit.digest]
        return self.free.pop()

    def hold(self, unit: Unit) -> SealedBlock | None:
        """A share of a unit that the device has or awaits; None for one that it does not."""
        if unit.users:
            if self.tier is not None:
                self.tier.put_back.discard(unit)
            return unit.share()
        if unit in self.cached:
            share = self.cached.take(unit).use()
            if self.tier is not None:
                self.tier.taken(unit)
            return share
        if not unit.arriving:
            return None
        assert self.tier is not None
        return self.tier.share(unit)

    def load(self, unit: Unit) -> SealedBlock:
        """A share of a unit that the host alone has; its blocks must be available."""
        assert self.tier is not None
        return self.tier.load(unit, [self.take_free() for _ in range(self.unit_blocks)])

    def seal(self, blocks: Sequence[WritableBlock], digest: bytes, parent: bytes, tokens: bytes) -> SealedBlock:
        """The blocks of one unit are full. Where the device has an equal unit, this one stays its sequence's own."""
        known = self.index.get(digest) if self.shares else None
        if known is not None and not known.indices and known.matches(parent, tokens):
            sealed = restore(blocks, known)
        else:
            sealed = seal(blocks, digest, parent, tokens)
        if self.shares and self.index.setdefault(digest, sealed.unit) is sealed.unit and self.tier is not None:
            self.tier.sealed(sealed.unit)
        return sealed

    def regard(self, unit: Unit) -> None:
        """A unit's expected reuse has changed: give it its new place among those that nobody uses."""
        cached = unit in self.cached
        if cached:
            self.cached.add(unit, self.cached.take(unit))
        if self.tier is not None:
            self.tier.regarded(unit, cached)

    def free_writable(self, blocks: Iterable[WritableBlock]) -> None:
        self.free.extend(block.free() for block in blocks)

    def give_back(self, share: SealedBlock) -> None:
        """A sequence does not use a unit any more."""
        unit = share.unit
        cached = share.release()
        if cached is not None:
            self._uses += 1
            unit.used = self._uses
            self._keep_or_free(cached)
            if self.tier is not None:
                self.tier.given_back(unit)
        elif not unit.users:  # it is arriving
            assert self.tier is not None
            self.free.extend(reversed(self.tier.cancel(unit)))

    def _keep_or_free(self, cached: CachedBlock, first: bool = False) -> None:
        unit = cached.unit
        if self.shares and not unit.spoilt and self.index.setdefault(unit.digest, unit) is unit:
            self.cached.add(unit, cached, first)
            if self.tier is not None:
                self.tier.cached(unit, first)
        else:
            self.free.extend(reversed(cached.evict()))

    # Copies to the host and back.

    def launch(self, step_id: int, save_blocks: int) -> tuple[BlockCopies | None, BlockCopies | None]:
        """What step `step_id` saves, in at most so many blocks, and what it loads; None for nothing."""
        if self.tier is None:
            return None, None
        saves = self._choose_saves(self.tier, max(save_blocks // self.unit_blocks, int(self.awaited > 0)))
        pairs = [(saving.unit.indices, saving.into) for saving in saves]
        loads = [(loading.unit.indices, loading.unit.host) for loading in self.tier.launch(step_id, saves)]
        return self._copies(pairs), self._copies(loads)

    @property
    def boarding_blocks(self) -> int:
        """Blocks that the step being planned loads."""
        return 0 if self.tier is None else len(self.tier.boarding) * self.unit_blocks

    def _copies(self, pairs: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> BlockCopies | None:
        if not pairs:
            return None
        device, host = ([index for pair in pairs for index in pair[side]] for side in (0, 1))
        return BlockCopies(np.array(device, np.int32), np.array(host, np.int32), self.number)

    def _choose_saves(self, tier: HostTier, units: int) -> list[SavingBlock]:
        """Cached units in the order of their eviction; units in use, oldest first, while that costs no other copy."""
        saves: list[SavingBlock] = []
        enough, self.awaited = max(READY_SHARE * self.blocks, self.awaited), 0
        for reuse, count in tier.unsaved.kinds():
            for _ in range(min(count, units - len(saves))):
                ready = len(self.free) + (len(self.cached) - len(tier.unsaved)) * self.unit_blocks
                if not tier.room(reuse, evict=ready < enough):
                    break
                unit = tier.unsaved.pop(reuse)
                self._make_host_room(tier)
                tier.put_back.add(unit)
                tier.save(self.cached.take(unit).use(), saves)
        while len(saves) < units and tier.fresh and len(tier.free) >= self.unit_blocks:
            unit, _ = tier.fresh.popitem(last=False)
            tier.save(unit.share(), saves)
        return saves

    def _make_host_room(self, tier: HostTier) -> None:
        while len(tier.free) < self.unit_blocks:
            self._evict_copy(tier)

    def _evict_copy(self, tier: HostTier) -> None:
        unit = tier.evict()
        if unit in self.cached:
            tier.cached(unit, False)
        elif unit.users:
            tier.sealed(unit)
        else:
            self._lost(unit)

    def _lost(self, unit: Unit) -> None:
        """A copy of the unit is gone; perhaps it was the last."""
        if not (unit.indices or unit.host) and unit.place < 0:
            del self.index[unit.digest]

    # Copies to disk and back.

    def disk_jobs(self, tier: HostTier, disk: DiskTier) -> list[DiskJob]:
        """What is to be written, as much as is written at a time, and what is to be read."""
        while (found := disk.next_to_store()) is not None:
            unit, gone = found
            if gone is not None:
                self._lost(gone)
            disk.store(tier.lend(unit))
        return disk.take_jobs()

    def fetch(self, tier: HostTier, disk: DiskTier, units: Sequence[Unit]) -> set[int]:
        """Bring units that cannot be loaded yet back to the host, the first ones as far as there is room; jobs to wait for. None
        gives way to another."""
        jobs, keep = set[int](), frozenset(units)
        for unit in units:
            if not (unit.host or unit in disk.job_of):
                if not self._room_to_fetch(tier, keep):
                    break
                disk.fetch(unit, [tier.free.pop() for _ in range(self.unit_blocks)])
            if unit in disk.job_of:
                jobs.add(disk.job_of[unit])
        return jobs

    def _room_to_fetch(self, tier: HostTier, keep: Container[Unit]) -> bool:
        while len(tier.free) < self.unit_blocks:
            first = tier.copies.first()
            if not tier.spare and (first is None or first.unit in keep):
                return False
            self._evict_copy(tier)
        return True

    def disk_done(self, tier: HostTier, disk: DiskTier, number: int, well: bool) -> None:
        """A job is over."""
        if number in disk.storing:
            tier.returned(disk.end_store(number, well))
            return
        unit = disk.fetching[number].unit
        copy, freed = disk.end_fetch(number, well, not (unit.host or unit.leaving))
        tier.free.extend(freed)
        if copy is not None:
            tier.fetched(copy)
        else:
            self._lost(unit)

    def complete_step(self, step_id: int) -> None:
        """The copies of this step and all before it are done."""
        if self.tier is None:
            return
        for step in [step for step in self.tier.saving if step <= step_id]:
            saved: list[tuple[Unit, CachedBlock | None]] = []
            for saving in self.tier.saving.pop(step):
                unit = saving.unit
                copy, cached = saving.done()
                self.tier.rest(copy, cached is None)
                saved.append((unit, cached))
            self._saved(self.tier, saved, well=True)
            self.saved_units += len(saved)
        for step in [step for step in self.tier.loading if step <= step_id]:
            for loading in self.tier.loading.pop(step):
                unit = loading.unit
                self.tier.arrive(unit)
                copy, cached = loading.done()
                self.tier.rest(copy, True)
                if cached is not None:
                    self._keep_or_free(cached)
                self.loaded_units += 1

    def fail_step(self, step_id: int) -> bool:
        """This step copied nothing. Whether sequences hold units that it was to load: they must not read them."""
        if self.tier is None:
            return False
        spoilt = False
        saved: list[tuple[Unit, CachedBlock | None]] = []
        for saving in self.tier.saving.pop(step_id, []):
            unit = saving.unit
            freed, cached = saving.fail()
            self.tier.free.extend(reversed(freed))
            if cached is None:
                self.tier.fresh[unit] = None
            saved.append((unit, cached))
        self._saved(self.tier, saved, well=False)
        for loading in self.tier.loading.pop(step_id, []):
            unit = loading.unit
            self.tier.arrive(unit)
            del self.index[unit.digest]
            self.tier.forget(unit)
            freed, cached = loading.fail()
            self.tier.free.extend(reversed(freed))
            if cached is None:
                spoilt = True
            else:
                self._keep_or_free(cached)
        return spoilt

    def _saved(self, tier: HostTier, saved: list[tuple[Unit, CachedBlock | None]], well: bool) -> None:
        """Saves are over. Units that were cached when they began are behind what was saved before, or, where that failed, again
        the first without a copy; those used meanwhile are behind all, tails before heads."""
        before = [cached for unit, cached in saved if cached is not None and unit in tier.put_back]
        since = [cached for unit, cached in saved if cached is not None and unit not in tier.put_back]
        tier.put_back.difference_update(unit for unit, _ in saved)
        for cached in before if well else reversed(before):
            self._keep_or_free(cached, first=not well)
        for cached in reversed(since):
            self._keep_or_free(cached)
