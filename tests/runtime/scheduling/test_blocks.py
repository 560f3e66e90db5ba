from __future__ import annotations

import pytest
from tokenspeed.runtime.scheduling.blocks import CachedBlock, FreeBlock, SealedBlock, WritableBlock, seal
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
