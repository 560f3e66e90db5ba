from __future__ import annotations

import pytest
from tokenspeed.runtime.scheduling.blocks import (
    CachedBlock,
    FreeBlock,
    FreeHostBlock,
    OffloadedBlock,
    SealedBlock,
    WritableBlock,
    restore,
    seal,
)
from tokenspeed.runtime.scheduling.errors import HandleConsumed, SchedulerMisuse


def sealed_block() -> SealedBlock:
    return seal([FreeBlock(0).write(), FreeBlock(1).write()], b"digest", b"parent", b"tokens")


def test_a_block_goes_round_its_states():
    free = FreeBlock(3)
    writable = free.write()
    sealed = seal([writable], b"digest", b"parent", b"tokens")
    cached = sealed.release()
    assert isinstance(cached, CachedBlock)
    again = cached.use().release()
    assert again is not None
    assert [block.index for block in again.evict()] == [3]


def test_only_the_last_user_gets_the_cached_block():
    first = sealed_block()
    second = first.unit.share()
    assert first.unit.users == 2
    assert first.release() is None
    assert isinstance(second.release(), CachedBlock)


def test_every_transition_consumes_its_handle():
    free = FreeBlock(0)
    writable = free.write()
    with pytest.raises(HandleConsumed, match="FreeBlock"):
        free.write()
    writable.free()
    for use in (writable.free, lambda: writable.index, lambda: seal([writable], b"", b"", b"")):
        with pytest.raises(HandleConsumed, match="WritableBlock"):
            use()
    sealed = sealed_block()
    cached = sealed.release()
    assert cached is not None
    for use in (sealed.release, lambda: sealed.unit):
        with pytest.raises(HandleConsumed, match="SealedBlock"):
            use()
    cached.evict()
    for use in (cached.evict, cached.use, lambda: cached.unit):
        with pytest.raises(HandleConsumed, match="CachedBlock"):
            use()


def test_sealing_consumes_the_writable_blocks():
    blocks: list[WritableBlock] = [FreeBlock(0).write(), FreeBlock(1).write()]
    seal(blocks, b"digest", b"parent", b"tokens")
    assert not any(block.live for block in blocks)
    with pytest.raises(HandleConsumed):
        blocks[1].free()


def test_a_unit_without_users_is_not_shared_behind_its_cached_block():
    sealed = sealed_block()
    unit = sealed.unit
    sealed.release()
    with pytest.raises(SchedulerMisuse):
        unit.share()


def host_blocks() -> list[FreeHostBlock]:
    return [FreeHostBlock(7), FreeHostBlock(8)]


def offloaded_block() -> OffloadedBlock:
    """A unit that the host alone has."""
    offloaded, cached = sealed_block().save(host_blocks()).done()
    assert cached is not None
    cached.evict()
    return offloaded


def test_a_unit_goes_to_the_host_and_back():
    sealed = sealed_block()
    unit, host = sealed.unit, host_blocks()
    saving = sealed.save(host)
    assert unit.leaving and (unit.users, unit.readers) == (1, 0) and saving.into == (7, 8)
    assert not any(block.live for block in host)
    offloaded, cached = saving.done()
    assert cached is not None and unit.host == (7, 8) and not unit.leaving
    assert [block.index for block in cached.evict()] == [0, 1] and unit.indices == ()
    loading = offloaded.load([FreeBlock(3), FreeBlock(4)])
    assert unit.arriving and unit.indices == (3, 4)
    reader = loading.share()
    offloaded, cached = loading.done()
    assert cached is None and not unit.arriving
    assert [block.index for block in offloaded.evict()] == [7, 8] and unit.host == ()
    assert isinstance(reader.release(), CachedBlock)


def test_what_is_being_saved_stays_until_the_copy_is_done():
    sealed = sealed_block()
    saving = sealed.unit.share().save(host_blocks())
    assert sealed.release() is None
    _, cached = saving.done()
    assert isinstance(cached, CachedBlock)


def test_a_failed_save_leaves_no_copy():
    sealed = sealed_block()
    free, cached = sealed.save(host_blocks()).fail()
    assert [block.index for block in free] == [7, 8] and cached is not None and cached.unit.host == ()


def test_what_is_arriving_is_not_cached_before_it_is_there():
    loading = offloaded_block().load([FreeBlock(0), FreeBlock(1)])
    assert loading.share().release() is None
    _, cached = loading.done()
    assert isinstance(cached, CachedBlock)


def test_only_a_load_that_nobody_waits_for_is_cancelled():
    loading = offloaded_block().load([FreeBlock(5), FreeBlock(6)])
    reader = loading.share()
    with pytest.raises(SchedulerMisuse):
        loading.cancel()
    reader.release()
    offloaded, free = loading.cancel()
    assert [block.index for block in free] == [5, 6] and offloaded.unit.host == (7, 8) and not offloaded.unit.arriving


def test_a_failed_load_leaves_neither_copy():
    loading = offloaded_block().load([FreeBlock(0), FreeBlock(1)])
    reader = loading.share()
    free, cached = loading.fail()
    assert [block.index for block in free] == [7, 8] and cached is None
    unit = reader.unit
    assert unit.spoilt and not unit.arriving and unit.host == ()
    assert isinstance(reader.release(), CachedBlock)


def test_a_unit_that_the_device_has_is_not_loaded_again():
    offloaded, cached = sealed_block().save(host_blocks()).done()
    free = [FreeBlock(2), FreeBlock(3)]
    with pytest.raises(SchedulerMisuse):
        offloaded.load(free)
    assert offloaded.live and all(block.live for block in free) and cached is not None


def test_a_unit_is_restored_by_computing_it_again():
    unit = offloaded_block().unit
    blocks = [FreeBlock(5).write(), FreeBlock(6).write()]
    sealed = restore(blocks, unit)
    assert unit.indices == (5, 6) and unit.host == (7, 8) and unit.users == 1 and not any(block.live for block in blocks)
    with pytest.raises(SchedulerMisuse):
        restore([FreeBlock(1).write()], sealed.unit)


def test_transfers_consume_their_handles():
    sealed = sealed_block()
    saving = sealed.save(host_blocks())
    with pytest.raises(HandleConsumed, match="SealedBlock"):
        sealed.release()
    offloaded, cached = saving.done()
    for use in (saving.done, saving.fail, lambda: saving.unit, lambda: saving.into):
        with pytest.raises(HandleConsumed, match="SavingBlock"):
            use()
    assert cached is not None
    loading = offloaded.load(cached.evict())
    for use in (offloaded.evict, lambda: offloaded.load([]), lambda: offloaded.unit):
        with pytest.raises(HandleConsumed, match="OffloadedBlock"):
            use()
    loading.done()[0].evict()
    cancelled = offloaded_block().load([FreeBlock(0), FreeBlock(1)])
    cancelled.cancel()
    with pytest.raises(HandleConsumed, match="LoadingBlock"):
        cancelled.share()
    failed = offloaded_block().load([FreeBlock(0), FreeBlock(1)])
    failed.fail()
    with pytest.raises(HandleConsumed, match="LoadingBlock"):
        failed.share()
    for use in (loading.done, loading.cancel, loading.fail, loading.share, lambda: loading.unit):
        with pytest.raises(HandleConsumed, match="LoadingBlock"):
            use()
    with pytest.raises(HandleConsumed, match="FreeHostBlock"):
        sealed_block().save(_consumed_host_blocks())


def _consumed_host_blocks() -> list[FreeHostBlock]:
    blocks = host_blocks()
    sealed_block().save(blocks)
    return blocks


def test_one_consumed_block_among_several_consumes_none():
    consumed, good = FreeHostBlock(1), FreeHostBlock(2)
    sealed_block().save([consumed])
    with pytest.raises(HandleConsumed):
        sealed_block().save([good, consumed])
    assert good.live
