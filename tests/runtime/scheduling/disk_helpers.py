"""KV managers with a tier on disk, for tests."""

from __future__ import annotations

from tokenspeed.runtime.scheduling.disk_tier import DiskJob, StoredUnit
from tokenspeed.runtime.scheduling.kv import KvManager
from tokenspeed.runtime.scheduling.kv_integrity import check_kv
from tokenspeed.runtime.scheduling.sequence_blocks import Hits

from .kv_helpers import chain_of, turn
from .tier_helpers import Steps, manager


def with_disk(
    *prompts: list[int], blocks: int = 4, host_blocks: int = 4, places: int = 4, unit_blocks: int = 1
) -> tuple[KvManager, Steps]:
    """A manager whose host has these prompts, and a disk where nothing is yet."""
    kv = manager(blocks, host_blocks, unit_blocks)
    kv.add_disk(places, 1.0)
    steps = Steps(kv)
    for tokens in prompts:
        turn(kv, "", tokens)
        steps.run()
    return kv, steps


def restored(*prompts: list[int], blocks: int = 4, host_blocks: int = 4, places: int = 4) -> tuple[KvManager, Steps]:
    """A manager that finds these on disk, the first unit of each."""
    kv = manager(blocks, host_blocks)
    kv.add_disk(places, 1.0, [unit_of(kv, tokens, place) for place, tokens in enumerate(prompts)])
    check_kv(kv)
    return kv, Steps(kv)


def unit_of(kv: KvManager, tokens: list[int], place: int, number: int = 0) -> StoredUnit:
    chain, encoded = chain_of(kv, tokens)
    return StoredUnit(place, chain.digests[number + 1], chain.digests[number], encoded[16 * number : 16 * (number + 1)])


def end(kv: KvManager, jobs: list[DiskJob], well: bool = True) -> None:
    for job in jobs:
        kv.disk_done(job.number, well)
        check_kv(kv)


def written(kv: KvManager, well: bool = True) -> list[DiskJob]:
    """All that is to be written, done."""
    every: list[DiskJob] = []
    while jobs := kv.disk_jobs():
        check_kv(kv)
        end(kv, jobs, well)
        every += jobs
    return every


def tokens_of(jobs: list[DiskJob]) -> list[int]:
    """The first token of each job's unit."""
    return [int.from_bytes(job.unit.tokens[:4], "little") for job in jobs]


def fill_device(kv: KvManager) -> None:
    """Other blocks in all of the pool, for a moment."""
    empty = kv.open(Hits([], 0))
    kv.grow(empty, kv.blocks)
    kv.release(empty, -1)
    check_kv(kv)


def empty_host(kv: KvManager) -> None:
    """The host gives all its copies up."""
    tier = kv.pool.tier
    assert tier is not None
    while len(tier.free) < tier.blocks:
        kv.pool._evict_copy(tier)
    check_kv(kv)
