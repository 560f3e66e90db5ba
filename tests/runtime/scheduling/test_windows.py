"""Window pools, played on the KV manager alone: what is reserved, what is left behind, and which prefixes they allow."""

from __future__ import annotations

import pytest
from tokenspeed.plans.errors import PlanError
from tokenspeed.plans.schema import KvGeometry, WindowPool
from tokenspeed.runtime.scheduling.blocks import Reuse
from tokenspeed.runtime.scheduling.errors import HandleConsumed, IntegrityError, SchedulerMisuse
from tokenspeed.runtime.scheduling.kv import KvManager, manager_of
from tokenspeed.runtime.scheduling.kv_integrity import check_kv
from tokenspeed.runtime.scheduling.retention import Owner
from tokenspeed.runtime.scheduling.sequence_blocks import Hits, SequenceBlocks
from tokenspeed.runtime.scheduling.windows import entries

from .kv_helpers import chain_of, find

UNIT, WINDOW = 4, 6
"""Units of four tokens in two blocks; a row sees itself and five tokens before: of whole units, two."""


def manager(*blocks: int, windows: tuple[int, ...] = (WINDOW,), rows: int = 2, share: bool = True) -> KvManager:
    kv = KvManager(32, 2, UNIT, "kv", share, windows=list(zip(windows, blocks, strict=True)))
    kv.limit_rows(rows, 64)
    return kv


def begin(kv: KvManager, tokens: list[int], limit: int = 64) -> SequenceBlocks:
    """A sequence with its hits, and blocks everywhere for all these tokens."""
    hits = find(kv, tokens)
    blocks = kv.open(hits, reserve=kv.reservations(len(tokens), hits, limit))
    kv.grow(blocks, kv.blocks_for(len(tokens)) - len(blocks.indices()))
    kv.cover(blocks, len(tokens))
    check_kv(kv)
    return blocks


def seal(kv: KvManager, blocks: SequenceBlocks, tokens: list[int]) -> None:
    chain, encoded = chain_of(kv, tokens)
    for unit in range(len(blocks.sealed), len(chain)):
        kv.seal(blocks, chain.digests[unit + 1], chain.digests[unit], encoded[unit * 4 * UNIT : (unit + 1) * 4 * UNIT])
    check_kv(kv)


def compute(kv: KvManager, tokens: list[int]) -> SequenceBlocks:
    blocks = begin(kv, tokens)
    seal(kv, blocks, tokens)
    return blocks


def test_what_a_row_sees_and_what_is_reserved():
    (window,) = manager(32).windows
    assert [window.first_seen(position) for position in (0, 4, 8, 9, 12, 13, 17)] == [0, 0, 0, 1, 1, 2, 3]
    # two units before the row, one that the rows begin in, one that they go on to
    assert window.blocks_to_reserve(64, 0, 64) == window.blocks_to_reserve(0, 0, 64) == 8
    assert [window.blocks_to_reserve(64, 0, limit) for limit in (1, 4, 5, 12, 13)] == [2, 2, 4, 6, 8]
    window.limit_rows(1)  # two steps may be in flight
    assert window.blocks_to_reserve(64, 0, 64) == 8
    window.limit_rows(12)
    assert [window.blocks_to_reserve(length, 4, 64) for length in (4, 8, 9, 15, 64)] == [8, 8, 10, 12, 12]
    assert (window.pool.number, window.unreserved, window.window, window.unit_tokens) == (1, 32, WINDOW, UNIT)


def test_two_rows_are_the_least():
    (window,) = KvManager(8, 1, 1, "kv", windows=[(3, 8)]).windows
    assert window.blocks_to_reserve(64, 0, 64) == 4
    window.limit_rows(1)
    assert window.blocks_to_reserve(64, 0, 64) == 4
    window.limit_rows(3)
    assert [window.blocks_to_reserve(length, 4, 64) for length in (4, 5, 6)] == [4, 4, 5]


def test_a_pool_that_does_not_hold_one_sequence_is_refused():
    kv = KvManager(32, 2, UNIT, "kv", windows=[(WINDOW, 32), (WINDOW, 11)])
    with pytest.raises(PlanError) as caught:
        kv.limit_rows(12, 64)
    assert "2: blocks" in str(caught.value) and "at least 12" in str(caught.value) and "11" in str(caught.value)
    kv.limit_rows(12, 20)
    KvManager(32, 2, UNIT, "kv", windows=[(WINDOW, 32), (WINDOW, 12)]).limit_rows(12, 64)


def test_window_pools_are_numbered_and_have_no_tier():
    kv = KvManager(8, 2, UNIT, "kv", host_blocks=4, windows=[(6, 16), (9, 32)])
    assert [(window.pool.number, window.window, window.pool.blocks) for window in kv.windows] == [(1, 6, 16), (2, 9, 32)]
    assert [window.pool.tier for window in kv.windows] == [None, None] and kv.has_tier and kv.pool.number == 0
    assert kv.completed_step == -1


def test_the_manager_of_a_plan():
    windows = (WindowPool(window=6, blocks=16, bytes_per_block=64), WindowPool(window=9, blocks=24, bytes_per_block=64))
    geometry = KvGeometry(
        identity_tokens=8,
        block_tokens=2,
        blocks=20,
        bytes_per_block=96,
        compatibility="kv",
        groups=(),
        host_blocks=12,
        windows=windows,
    )
    kv = manager_of(geometry)
    assert (kv.blocks, kv.block_tokens, kv.identity_tokens, kv.compatibility, kv.bytes_per_block) == (20, 2, 8, "kv", 96)
    assert kv.pool.shares == geometry.shares_prefixes and kv.pool.tier is not None and kv.pool.tier.blocks == 12
    assert [(window.window, window.pool.blocks, window.unit_tokens) for window in kv.windows] == [(6, 16, 8), (9, 24, 8)]


def test_what_no_row_sees_any_more_is_given_back_and_stays_cached():
    kv = manager(16, rows=12)
    tokens = list(range(21))
    blocks = begin(kv, tokens[:9])
    seal(kv, blocks, tokens[:9])
    (part,), (window,) = blocks.windows, kv.windows
    assert kv.leave_behind(blocks, 8, 64, prefills=True) == [0] and (part.first, len(part.sealed)) == (0, 2)
    assert kv.leave_behind(blocks, 9, 64, prefills=True) == [2] and (part.first, len(part.sealed)) == (1, 1)
    assert window.indices(part) == [2, 3, 4] and len(window.pool.cached) == 1 and window.pool.available == 13
    kv.grow(blocks, kv.blocks_for(21) - len(blocks.indices()))
    assert kv.cover(blocks, 21) == [(5, [5, 6, 7, 8, 9, 10])]
    assert len(window.indices(part)) == 9
    seal(kv, blocks, tokens)
    assert kv.leave_behind(blocks, 21, 64, prefills=True) == [6] and part.first == 4 and window.indices(part) == [8, 9, 10]
    assert kv.leave_behind(blocks, 40, 64, prefills=True) == [2] and (part.first, part.sealed) == (5, [])
    assert kv.leave_behind(blocks, 40, 64, prefills=True) == [0] and window.indices(part) == [10]
    check_kv(kv)


def test_a_reservation_shrinks_when_the_prompt_is_computed_and_never_grows():
    kv = manager(32, rows=12)
    tokens = list(range(13))
    blocks = compute(kv, tokens)
    assert kv.reserved(blocks) == [12] and kv.unreserved() == [20]
    kv.leave_behind(blocks, 13, 64, prefills=True)
    assert kv.reserved(blocks) == [12]
    assert kv.leave_behind(blocks, 13, 64, prefills=False) == [0]
    assert kv.reserved(blocks) == [8] and kv.unreserved() == [24]
    kv.leave_behind(blocks, 13, 2, prefills=False)  # it has three blocks, and its next row may want one
    assert kv.reserved(blocks) == [4] and kv.unreserved() == [28]
    kv.leave_behind(blocks, 13, 64, prefills=False)
    assert kv.reserved(blocks) == [4]
    kv.release(blocks, 5)
    assert kv.retiring_reserved() == [4] and kv.unreserved() == [28]
    check_kv(kv)
    kv.complete_step(5)
    assert kv.retiring_reserved() == [0] and kv.unreserved() == [32]


def test_retiring_reservations_are_told_by_pool():
    kv = manager(32, 32, windows=(WINDOW, 20))
    first, second = compute(kv, list(range(5))), compute(kv, list(range(50, 55)))
    assert kv.reserved(first) == [8, 14] and kv.unreserved() == [16, 4]
    kv.release(first, 5)
    kv.release(second, 6)
    assert kv.retiring_reserved() == [16, 28]


def test_no_more_is_reserved_than_there_is():
    kv = manager(16)
    first, second = kv.open(Hits([], 0), reserve=[8]), kv.open(Hits([], 0), reserve=[8])
    with pytest.raises(SchedulerMisuse, match="1 blocks to be reserved in pool 1, 0 are left"):
        kv.open(Hits([], 0), reserve=[1])
    assert first.live and second.live


def test_a_prefix_needs_what_its_next_row_sees():
    kv = manager(16)
    tokens = list(range(16))
    blocks = compute(kv, tokens)
    seen = [share.unit for share in blocks.windows[0].sealed]
    kv.leave_behind(blocks, 17, 64, prefills=False)
    kv.release(blocks, -1)
    check_kv(kv)
    hits = find(kv, tokens)
    assert (len(hits.units), hits.idle_blocks, hits.windows) == (4, 8, (seen[2:],))
    again = begin(kv, [*tokens, 7])
    assert (again.windows[0].first, [share.unit for share in again.windows[0].sealed]) == (2, seen[2:])
    assert kv.reserved(again) == [8] and len(again.windows[0].writable) == 1
    kv.release(again, -1)
    pool = kv.windows[0].pool
    pool.cached.take(seen[2]).evict()  # of the windows' pool alone
    assert [len(find(kv, tokens[:length]).units) for length in (4, 8, 12, 16)] == [1, 2, 2, 2]
    assert find(kv, tokens).windows == (seen[:2],) and find(kv, tokens).idle_blocks == 4
    pool.cached.take(seen[0]).evict()
    assert find(kv, tokens) == Hits([], 0, 0, ([],))


def test_what_is_cached_needs_no_rows():
    kv = manager(32, rows=12)
    tokens = list(range(12))
    kv.release(compute(kv, tokens), -1)
    assert [kv.reservations(12, find(kv, tokens[:cached]), 64) for cached in (0, 4, 8)] == [(12,), (10,), (8,)]


def test_every_window_must_have_what_the_next_row_sees():
    kv = manager(32, 32, windows=(1, WINDOW), rows=12)
    tokens = list(range(12))
    kv.release(compute(kv, tokens), -1)
    units = find(kv, tokens).units
    narrow, wide = (window.pool for window in kv.windows)
    assert [len(seen) for seen in find(kv, tokens).windows] == [0, 2] and len(units) == 3
    for unit in [block.unit for block in narrow.cached]:
        narrow.cached.take(unit).evict()
    assert len(find(kv, tokens).units) == 3, "a row that sees itself alone"
    unit = wide.index[units[1].digest]
    wide.cached.take(unit).evict()
    assert len(find(kv, tokens).units) == 1


def test_units_of_windows_are_shared():
    kv = manager(16)
    tokens = list(range(8))
    first, second = compute(kv, tokens), compute(kv, [*tokens, 9])
    assert [share.unit.users for share in first.windows[0].sealed] == [2, 2]
    assert second.windows[0].writable and kv.usage == 5 / 16
    kv.release(second, -1)
    kv.release(first, -1)
    assert kv.windows[0].pool.available == 16 and kv.usage == 0.0
    assert [block.unit.tokens[0] for block in kv.windows[0].pool.cached] == [4, 0], "the tail is evicted first"


def test_the_fullest_pool_tells_the_usage():
    kv = KvManager(8, 2, UNIT, "kv", windows=[(WINDOW, 32)])
    begin(kv, [1, 2, 3, 4], limit=4)
    assert kv.usage == 2 / 8


def test_the_entries_of_a_sequence():
    kv = manager(16, 32, windows=(WINDOW, 20))
    blocks = compute(kv, list(range(13)))
    kv.leave_behind(blocks, 13, 64, prefills=True)
    assert list(entries(blocks.windows, kv.windows)) == [(4, [4, 5, 6]), (0, [0, 1, 2, 3, 4, 5, 6])]
    with pytest.raises(ValueError, match="zip"):
        list(entries(blocks.windows, kv.windows[:1]))


def test_the_check_sees_damage():
    kv = manager(16)
    blocks = compute(kv, list(range(9)))
    (part,), (window,) = blocks.windows, kv.windows
    part.sealed[0].unit.users += 1
    with pytest.raises(IntegrityError, match=r"window pool 1: .* counts 2 users, has 1"):
        window.check([part])
    with pytest.raises(IntegrityError, match="two states, or none"):
        window.check([])


def test_a_sequence_of_other_windows_is_refused():
    kv = manager(16)
    tokens = list(range(4))
    chain, encoded = chain_of(kv, tokens)
    with pytest.raises(ValueError, match="zip"):
        kv.open(Hits([], 0))
    with pytest.raises(ValueError, match="zip"):
        kv.open(Hits([], 0, windows=([], [])), reserve=[1])
    kv = manager(16)
    blocks = begin(kv, tokens)
    blocks.windows = ()
    for use in (
        lambda: kv.seal(blocks, chain.digests[1], chain.digests[0], encoded),
        lambda: kv.cover(blocks, 4),
        lambda: kv.leave_behind(blocks, 4, 64, prefills=False),
        lambda: kv.release(blocks, -1),
    ):
        with pytest.raises(ValueError, match="zip"):
            use()


def session(kv: KvManager, name: str, tokens: list[int], limit: int = 64) -> SequenceBlocks:
    """A turn with its blocks computed, by eight tokens at a time; what its window leaves behind is given back."""
    chain, _ = chain_of(kv, tokens)
    hits = find(kv, tokens)
    owner = Owner(name, True, chain.digests)
    blocks = kv.open(hits, owner, kv.reservations(len(tokens), hits, limit))
    start = len(blocks.sealed) * UNIT
    for end in [*range(start + 8, len(tokens), 8), len(tokens)]:
        kv.grow(blocks, kv.blocks_for(end) - len(blocks.indices()))
        kv.cover(blocks, end)
        seal(kv, blocks, tokens[:end])
        kv.leave_behind(blocks, end, limit, prefills=True)
        check_kv(kv)
    return blocks


def retaining(blocks: int = 20) -> KvManager:
    kv = KvManager(80, 2, UNIT, "kv", windows=[(WINDOW, blocks)])
    kv.limit_rows(8, 64)
    kv.retention.by_reuse = kv.retention.supersede = True
    return kv


ONE, TWO = list(range(16)), list(range(100, 148))


def kinds(kv: KvManager) -> list[Reuse]:
    return [block.unit.reuse for block in kv.windows[0].pool.cached]


def test_what_is_behind_a_window_goes_before_what_sessions_return_to():
    kv = retaining()
    kv.release(session(kv, "one", ONE), -1)
    assert kinds(kv) == [Reuse.GONE] * 2 + [Reuse.USER] * 2
    kv.end_turn("one", "tool_call")
    assert kinds(kv) == [Reuse.GONE] * 2 + [Reuse.TOOL] * 2
    kv.release(session(kv, "two", TWO), -1)
    assert len(find(kv, ONE).units) == 4 and len(find(kv, TWO).units) == 12
    kv = retaining()
    kv.retention.by_reuse = False
    kv.release(session(kv, "one", ONE), -1)
    kv.release(session(kv, "two", TWO), -1)
    assert find(kv, ONE).units == [], "the least recently used go first"


def test_what_sessions_share_stays_when_it_is_left_behind():
    kv = retaining(40)
    kv.release(session(kv, "one", ONE[:12]), -1)
    units = find(kv, ONE[:12]).windows[0]
    assert [unit.session for unit in units] == ["one"] * 2 and not any(unit.shared for unit in units)
    held = session(kv, "two", [*ONE[:12], *TWO])
    assert all(unit.shared and unit.reuse is Reuse.SHARED and not unit.users for unit in units)
    kv.release(held, -1)
    assert kinds(kv).count(Reuse.SHARED) == 2


def test_hints_of_sessions_reach_their_windows():
    kv = retaining(40)
    kv.release(session(kv, "one", ONE), -1)
    kv.clock.now = 5.0
    kv.park_session("one")
    assert kinds(kv) == [Reuse.GONE] * 2 + [Reuse.IDLE] * 2
    kv.end_turn("one", "end_of_turn")
    assert kinds(kv) == [Reuse.GONE] * 2 + [Reuse.USER] * 2
    assert all(block.unit.since == 5.0 for block in [*kv.windows[0].pool.cached][2:])
    kv.close_session("one")
    assert kinds(kv) == [Reuse.GONE] * 4


def test_what_is_left_behind_is_told_the_time():
    kv = retaining(40)
    kv.clock.now = 7.0
    blocks = session(kv, "one", ONE)
    assert [block.unit.since for block in kv.windows[0].pool.cached] == [7.0] * 2 and blocks.live


def test_a_released_sequence_seals_nothing():
    kv = manager(16)
    blocks = begin(kv, list(range(4)))
    kv.release(blocks, 5)  # its blocks are still set aside
    with pytest.raises(HandleConsumed):
        kv.seal(blocks, b"1", b"0", bytes(16))
    with pytest.raises(HandleConsumed):
        kv.grow(blocks, 0)
