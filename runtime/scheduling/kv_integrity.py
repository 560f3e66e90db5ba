"""Every invariant of the KV manager, for tests and simulators: O(pool)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Literal

from .blocks import LoadingBlock, Reuse, Unit
from .errors import IntegrityError
from .host_tier import HostTier
from .kv import KvManager
from .pool import BlockPool
from .sequence_blocks import SequenceBlocks
from .stored_blocks import FetchingBlock, StoringBlock
from .windows import WindowBlocks

BlockState = Literal["free", "writable", "sealed", "cached", "loading"]
HostState = Literal["free", "offloaded", "saving", "loading", "storing", "fetching"]
DiskState = Literal["free", "stored", "storing", "fetching"]


def block_states(kv: KvManager, number: int = 0) -> dict[int, BlockState]:
    """State of every physical block of a pool, for checks and people. Raises IntegrityError when one has two states or none."""
    pool, holders = pool_of(kv, number), [*_holders(kv, number)]
    sealed = {block.unit for holder in holders for block in holder.sealed}
    tier = pool.tier
    loading = {block.unit for block in _loads(tier)} if tier is not None else set[Unit]()
    saving = {block.unit for saves in tier.saving.values() for block in saves} if tier is not None else set[Unit]()
    states: dict[int, BlockState] = {}
    groups: tuple[tuple[BlockState, Iterable[int]], ...] = (
        ("free", [block.index for block in pool.free]),
        ("writable", [block.index for holder in holders for block in holder.writable]),
        ("loading", _indices(loading)),
        ("sealed", _indices((sealed | saving) - loading)),
        ("cached", [index for block in pool.cached for index in block.unit.indices]),
    )
    for state, indices in groups:
        for index in indices:
            _require(index not in states, f"pool {number}: block {index} is {states.get(index)} and {state}")
            states[index] = state
    _require(states.keys() == set(range(pool.blocks)), f"pool {number}: a block is in no state, or outside the pool")
    return states


def host_states(kv: KvManager, number: int = 0) -> dict[int, HostState]:
    """State of every block of a pool's tier on the host, as `block_states`."""
    tier = pool_of(kv, number).tier
    if tier is None:
        return {}
    copies = [*tier.copies, *tier.spare.values()]
    states: dict[int, HostState] = {}
    groups: tuple[tuple[HostState, list[int]], ...] = (
        ("free", [block.index for block in tier.free]),
        ("offloaded", [index for block in copies for index in block.unit.host]),
        ("saving", [index for saves in tier.saving.values() for block in saves for index in block.into]),
        ("loading", [index for block in _loads(tier) for index in block.unit.host]),
        ("storing", [index for block in _stores(tier) for index in block.unit.host]),
        ("fetching", [index for block in _fetches(tier) for index in block.into]),
    )
    for state, indices in groups:
        for index in indices:
            _require(index not in states, f"host block {index} is {states.get(index)} and {state}")
            states[index] = state
    _require(states.keys() == set(range(tier.blocks)), "a host block is in no state, or outside the tier")
    return states


def pool_of(kv: KvManager, number: int) -> BlockPool:
    return kv.windows[number - 1].pool if number else kv.pool


def _holders(kv: KvManager, number: int) -> Iterator[SequenceBlocks | WindowBlocks]:
    """What sequences hold of a pool, those included that wait for a launched step."""
    for holder in kv.holders():
        yield holder.windows[number - 1] if number else holder


def disk_states(kv: KvManager) -> dict[int, DiskState]:
    """State of every place on disk, as `block_states`."""
    tier, disk = kv.pool.tier, kv.disk
    if tier is None or disk is None:
        return {}
    states: dict[int, DiskState] = {}
    groups: tuple[tuple[DiskState, list[int]], ...] = (
        ("free", [place.index for place in disk.free]),
        ("stored", [block.unit.place for block in disk.stored]),
        ("storing", [block.into for block in _stores(tier)]),
        ("fetching", [block.unit.place for block in _fetches(tier)]),
    )
    for state, places in groups:
        for place in places:
            _require(place not in states, f"place {place} is {states.get(place)} and {state}")
            states[place] = state
    _require(states.keys() == set(range(disk.places)), "a place is in no state, or outside the disk")
    return states


def check_kv(kv: KvManager) -> None:
    """Raises IntegrityError naming the first invariant that is broken."""
    block_states(kv)
    host_states(kv)
    disk_states(kv)
    users = Counter(block.unit for holder in kv.holders() for block in holder.sealed)
    if kv.pool.tier is not None:
        users.update(block.unit for saves in kv.pool.tier.saving.values() for block in saves)
    _check_units(kv.pool, users)
    _check_index(kv.pool, users)
    if kv.pool.tier is not None:
        _check_tier(kv.pool, kv.pool.tier, users)
        _check_disk(kv.pool, kv.pool.tier)
    for at, window in enumerate(kv.windows):
        window.check(holder.windows[at] for holder in kv.holders())
    _require(all(step > kv.completed_step for step in kv.retiring_steps()), "blocks retire on a step that is complete")


def _check_units(pool: BlockPool, users: Counter[Unit]) -> None:
    for unit, count in users.items():
        _require(unit.users == count, f"unit at {unit.indices} counts {unit.users} users, has {count}")
        _require(len(unit.indices) == pool.unit_blocks, f"unit at {unit.indices} has the wrong size")
        indexed = pool.index.get(unit.digest) is unit
        _require(count == 1 or indexed or unit.spoilt, f"shared unit at {unit.indices} is not in the index")
        _require(not (indexed and unit.spoilt), f"spoilt unit at {unit.indices} is in the index")
    for cached in pool.cached:
        _require(cached.unit.users == 0, f"cached unit at {cached.unit.indices} has users")
        _require(pool.index.get(cached.unit.digest) is cached.unit, f"cached unit at {cached.unit.indices} is not in the index")


def _check_index(pool: BlockPool, users: Counter[Unit]) -> None:
    for digest, unit in pool.index.items():
        _require(unit.digest == digest, f"unit at {unit.indices} is indexed under another digest")
        here = unit in users or unit in pool.cached or unit.arriving
        there = unit.host != () or unit.place >= 0
        _require(here or there, f"indexed unit at {unit.indices} is neither sealed nor cached nor offloaded nor stored")
        _require(here == bool(unit.indices), f"indexed unit at {unit.indices} is not where it says")
        _require(unit in users or not unit.users, f"unit at {unit.indices} has unknown users")


def _check_tier(pool: BlockPool, tier: HostTier, users: Counter[Unit]) -> None:
    arriving = {block.unit for block in _loads(tier)}
    saving = {block.unit for saves in tier.saving.values() for block in saves}
    held = {*(block.unit for block in tier.copies), *tier.spare}
    _require(arriving == {unit for unit in pool.index.values() if unit.arriving}, "an arriving unit is not being loaded")
    _require(arriving == {*tier.arriving}, "the tier lists other loads than it has")
    _require(saving == {unit for unit in users if unit.leaving}, "a leaving unit is not being saved")
    _require(tier.put_back <= saving, "a unit is to be put back after no save")
    for unit in [*held, *arriving, *saving]:
        _require(pool.index.get(unit.digest) is unit, f"unit at {unit.indices} is on the host but not in the index")
    for unit in held | arriving:
        _require(len(unit.host) == pool.unit_blocks, f"copy at {unit.host} has the wrong size")
    for unit in {block.unit for block in tier.copies}:
        _require(not unit.users, f"copy at {unit.host} is not spare, but the unit is in use")
    for unit in tier.spare:
        _require(bool(unit.indices), f"copy at {unit.host} is spare, but the device does not have the unit")
    for unit in arriving & tier.waiting.keys():
        _require(unit.users > 0, f"nobody waits for unit at {unit.indices}")
    cached = {block.unit for block in pool.cached}
    unsaved = {unit for unit in cached if not unit.host and unit.reuse is not Reuse.GONE}
    _require(unsaved == {*tier.unsaved}, "the cached units without a copy are others than those listed")
    _require(cached - unsaved == {*tier.saved}, "the cached units with a copy are others than those listed")
    used = {unit for unit in users if pool.index.get(unit.digest) is unit}
    fresh = {unit for unit in used if not (unit.host or unit.leaving or unit.arriving)}
    _require(fresh == {*tier.fresh}, "the units in use without a copy are others than those listed")


def _check_disk(pool: BlockPool, tier: HostTier) -> None:
    disk, lent = tier.disk, {block.unit for block in _stores(tier)}
    _require(lent == {*tier.lent}, "copies that are being written are others than those lent")
    for unit, spare in tier.lent.items():
        _require(unit.storing and len(unit.host) == pool.unit_blocks, f"copy at {unit.host} is lent but not being written")
        _require(spare or not unit.users, f"copy at {unit.host} is not spare, but the unit is in use")
        _require(bool(unit.indices) or not spare, f"copy at {unit.host} is spare, but the device does not have the unit")
    _require({unit for unit in pool.index.values() if unit.storing} == lent, "a unit says that it is being written, but is not")
    if disk is None:
        return
    fetching = {block.unit for block in _fetches(tier)}
    there = {block.unit for block in disk.stored} | fetching
    _require({unit for unit in pool.index.values() if unit.place >= 0} == there, "units on disk are others than those listed")
    _require(not any(unit.host and not unit.leaving and not unit.indices for unit in fetching), "a unit is fetched in vain")
    _require(disk.job_of.keys() == lent | fetching, "jobs are of other units than those in transfer")
    at_rest = {*(block.unit for block in tier.copies), *tier.spare}
    unstored = {*disk.unstored}
    _require(unstored <= at_rest, "a unit is to be written that the host does not have")
    _require(all(unit.place < 0 and unit.reuse is not Reuse.GONE for unit in unstored), "a unit is to be written for nothing")


def _stores(tier: HostTier) -> list[StoringBlock]:
    return [] if tier.disk is None else [*tier.disk.storing.values()]


def _fetches(tier: HostTier) -> list[FetchingBlock]:
    return [] if tier.disk is None else [*tier.disk.fetching.values()]


def _loads(tier: HostTier) -> list[LoadingBlock]:
    waiting = [entry.block for entry in tier.waiting.values()]
    return [*waiting, *tier.boarding, *(block for loads in tier.loading.values() for block in loads)]


def _indices(units: Iterable[Unit]) -> list[int]:
    return [index for unit in units for index in unit.indices]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise IntegrityError(message)
