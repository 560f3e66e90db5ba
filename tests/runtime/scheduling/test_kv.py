from __future__ import annotations

import pytest
from tokenspeed.plans.errors import PlanError
from tokenspeed.runtime.scheduling.errors import HandleConsumed, IntegrityError, OutOfBlocks
from tokenspeed.runtime.scheduling.kv import KvManager
from tokenspeed.runtime.scheduling.kv_integrity import block_states, check_kv
from tokenspeed.runtime.scheduling.prefix import chain_seed
from tokenspeed.runtime.scheduling.sequence_blocks import Hits, SequenceBlocks

from .kv_helpers import chain_of, compute, find

UNIT = 4


@pytest.mark.parametrize(("blocks", "block_tokens", "identity"), [(0, 4, 4), (4, 0, 4), (4, 3, 4), (4, 8, 4), (4, 4, 0)])
def test_unusable_geometry_is_refused(blocks: int, block_tokens: int, identity: int):
    with pytest.raises(PlanError, match="KV geometry"):
        KvManager(blocks, block_tokens, identity, "kv")


@pytest.mark.parametrize("block_tokens", [1, 2, 4])
def test_a_sealed_prefix_is_shared_by_count(block_tokens: int):
    kv = KvManager(32, block_tokens, UNIT, "kv")
    first = compute(kv, list(range(10)))
    second = compute(kv, [*range(8), 99, 98])
    prefix = 8 // block_tokens
    assert first.indices()[:prefix] == second.indices()[:prefix]
    assert not set(first.indices()[prefix:]) & set(second.indices()[prefix:])
    assert [block.unit.users for block in second.sealed] == [2, 2]
    kv.release(first, -1)
    assert find(kv, list(range(8))).idle_blocks == 0
    kv.release(second, -1)
    hits = find(kv, list(range(8)))
    assert len(hits.units) == 2 and hits.idle_blocks == prefix
    assert kv.available == 32


def test_a_hit_ends_at_the_first_difference_and_never_crosses_salts():
    kv = KvManager(16, 4, UNIT, "kv")
    kv.release(compute(kv, list(range(12)), "one"), -1)
    assert len(find(kv, list(range(12)), "one").units) == 3
    assert len(find(kv, [*range(4), 9, 9, 9, 9, *range(8, 12)], "one").units) == 1
    assert find(kv, list(range(12)), "two").units == []
    assert find(KvManager(16, 4, UNIT, "other"), list(range(12)), "one").units == []


def test_a_hash_collision_is_a_miss(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tokenspeed.runtime.scheduling.prefix.unit_digest", lambda parent, tokens: b"collision")
    kv = KvManager(8, 4, UNIT, "kv")
    kv.release(compute(kv, [1, 2, 3, 4]), -1)
    assert len(find(kv, [1, 2, 3, 4]).units) == 1
    assert find(kv, [1, 2, 3, 5]).units == []
    other = compute(kv, [1, 2, 3, 5])
    kv.release(other, -1)
    check_kv(kv)
    assert kv.available == 8


def test_equal_tokens_under_another_parent_are_a_miss(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tokenspeed.runtime.scheduling.prefix.unit_digest", lambda parent, tokens: b"collision")
    kv = KvManager(8, 4, UNIT, "kv")
    kv.release(compute(kv, [1, 2, 3, 4], "one"), -1)
    assert find(kv, [1, 2, 3, 4], "two").units == []


def test_eviction_is_least_recently_used_and_tail_first():
    kv = KvManager(4, 4, UNIT, "kv")
    old, new = list(range(8)), list(range(50, 58))
    kv.release(compute(kv, old), -1)
    kv.release(compute(kv, new), -1)
    kv.grow(kv.open(Hits([], 0)), 1)
    assert (len(find(kv, old).units), len(find(kv, new).units), kv.evictions) == (1, 2, 1)
    kv.release(compute(kv, old[:4]), -1)  # used again: now the most recent
    kv.grow(kv.open(Hits([], 0)), 1)
    assert (len(find(kv, old).units), len(find(kv, new).units), kv.evictions) == (1, 1, 2)
    check_kv(kv)


def test_what_is_in_use_is_never_evicted():
    kv = KvManager(3, 4, UNIT, "kv")
    held = compute(kv, list(range(8)))
    with pytest.raises(OutOfBlocks):
        kv.grow(held, 2)
    assert len(held.indices()) == 2 and kv.available == 1
    check_kv(kv)


def test_blocks_of_a_launched_step_are_set_aside_until_it_completes():
    kv = KvManager(4, 4, UNIT, "kv")
    kv.complete_step(6)
    blocks = compute(kv, list(range(10)))
    kv.release(blocks, 7)
    assert kv.available == 1 and kv.retiring and kv.retiring_blocks() == 3
    assert sorted(block_states(kv).values()) == ["free", "sealed", "sealed", "writable"]
    check_kv(kv)
    kv.complete_step(6)
    assert kv.available == 1
    kv.complete_step(7)
    assert kv.available == 4 and not kv.retiring
    assert sorted(block_states(kv).values()) == ["cached", "cached", "free", "free"]


def test_blocks_set_aside_come_back_in_the_order_of_steps():
    kv = KvManager(4, 4, UNIT, "kv")
    late, early = compute(kv, list(range(4))), compute(kv, list(range(50, 54)))
    units = [blocks.sealed[0].unit for blocks in (early, late)]
    kv.release(late, 7)
    kv.release(early, 6)
    kv.complete_step(7)
    assert [block.unit for block in kv.pool.cached] == units


def test_a_duplicate_stays_unshared_and_takes_over_when_the_first_is_gone():
    kv = KvManager(4, 4, UNIT, "kv")
    tokens = list(range(4))
    chain, encoded = chain_of(kv, tokens)
    copies = [kv.open(Hits([], 0)) for _ in range(2)]
    for blocks in copies:
        kv.grow(blocks, 1)
        kv.seal(blocks, chain.digests[1], chain.digests[0], encoded)
    check_kv(kv)
    assert find(kv, tokens).units == [copies[0].sealed[0].unit]
    kv.release(copies[0], -1)
    kv.grow(kv.open(Hits([], 0)), 3)  # evicts the first copy
    assert find(kv, tokens).units == []
    unit = copies[1].sealed[0].unit
    kv.release(copies[1], -1)
    assert find(kv, tokens).units == [unit]
    check_kv(kv)


def test_a_duplicate_is_freed_where_the_first_is_cached():
    kv = KvManager(4, 4, UNIT, "kv")
    chain, encoded = chain_of(kv, list(range(4)))
    for _ in range(2):
        blocks = kv.open(Hits([], 0))
        kv.grow(blocks, 1)
        kv.seal(blocks, chain.digests[1], chain.digests[0], encoded)
        kv.release(blocks, -1)
    assert sorted(block_states(kv).values()) == ["cached", "free", "free", "free"]
    assert kv.evictions == 0


def test_released_blocks_cannot_be_used():
    kv = KvManager(4, 4, UNIT, "kv")
    blocks = compute(kv, list(range(4)))
    kv.release(blocks, -1)
    for use in (lambda: kv.release(blocks, -1), lambda: kv.grow(blocks, 1), blocks.indices):
        with pytest.raises(HandleConsumed):
            use()


def test_released_blocks_of_an_empty_sequence_cannot_be_used():
    kv = KvManager(4, 2, UNIT, "kv")
    blocks = kv.open(Hits([], 0))
    kv.release(blocks, -1)
    with pytest.raises(HandleConsumed):
        blocks.indices()
    assert kv.tokens == 8


def test_a_seed_is_of_compatibility_and_salt_in_this_order():
    assert KvManager(4, 4, UNIT, "kv").seed("salt") == chain_seed("kv", "salt") != chain_seed("salt", "kv")


def test_a_manager_that_does_not_share_keeps_nothing():
    kv = KvManager(4, 4, UNIT, "kv", share=False)
    first, second = compute(kv, list(range(8))), compute(kv, list(range(8)))
    assert not set(first.indices()) & set(second.indices())
    assert not kv.pool.index and find(kv, list(range(8))) == Hits([], 0)
    kv.release(first, -1)
    check_kv(kv)
    assert not kv.pool.index and sorted(block_states(kv).values()) == ["free", "free", "sealed", "sealed"]


def test_reclaimable_counts_what_nobody_else_uses():
    kv = KvManager(16, 2, UNIT, "kv")
    first = compute(kv, list(range(9)))
    assert kv.reclaimable(first) == 5
    compute(kv, list(range(4)))
    assert kv.reclaimable(first) == 3
    assert kv.reclaimable(first, {first.sealed[1].unit}) == 1


@pytest.mark.parametrize("known", [0, 1, 2, 3, 4, 5])
def test_how_much_of_a_chain_is_probably_known(known: int):
    kv = KvManager(16, 2, UNIT, "kv")
    kv.release(compute(kv, list(range(4 * known))), -1)
    chain, _ = chain_of(kv, list(range(20)))
    assert kv.probable_units(chain.digests) == known
    assert kv.probable_units(chain.digests[:1]) == 0


def test_integrity_check_sees_damage():
    def damaged() -> tuple[KvManager, SequenceBlocks]:
        kv = KvManager(4, 4, UNIT, "kv")
        return kv, compute(kv, list(range(9)))

    kv, blocks = damaged()
    blocks.sealed[0].unit.users += 1
    with pytest.raises(IntegrityError, match="counts 2 users"):
        check_kv(kv)
    kv, blocks = damaged()
    blocks.writable.clear()
    with pytest.raises(IntegrityError, match="no state"):
        check_kv(kv)
    kv, blocks = damaged()
    blocks.writable.append(blocks.writable[0])
    with pytest.raises(IntegrityError, match="writable and writable"):
        check_kv(kv)
    kv, blocks = damaged()
    blocks.sealed[0].unit.digest = b"other"
    with pytest.raises(IntegrityError, match="another digest"):
        check_kv(kv)
    kv, blocks = damaged()
    other = kv.open(Hits([blocks.sealed[0].unit], 0))
    del kv.pool.index[blocks.sealed[0].unit.digest]
    assert other.live
    with pytest.raises(IntegrityError, match="not in the index"):
        check_kv(kv)
