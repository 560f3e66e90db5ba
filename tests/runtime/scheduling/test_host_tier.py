"""The tier in host memory, played on the KV manager alone: what is saved, and what comes back for whom."""

from __future__ import annotations

import pytest
from tokenspeed.runtime.scheduling.errors import OutOfBlocks
from tokenspeed.runtime.scheduling.kv import KvManager
from tokenspeed.runtime.scheduling.kv_integrity import block_states, check_kv, host_states
from tokenspeed.runtime.scheduling.sequence_blocks import Hits

from .kv_helpers import chain_of, compute, find, turn
from .tier_helpers import ALL, Steps, manager, offloaded, pairs, prompt, start


def test_units_are_saved_in_the_order_of_their_eviction_and_keep_it():
    kv = manager(host_blocks=8)
    steps = Steps(kv)
    turn(kv, "", prompt(1, 2))
    turn(kv, "", prompt(2, 2))
    order = [block.unit.indices[0] for block in kv.pool.cached]
    saves, loads = steps.launch(saved=3)
    assert [device for device, _ in saves] == order[:3] and not loads
    assert kv.available == 1 and kv.retiring and kv.retiring_blocks() == 3 and kv.usage == 0.75
    assert sorted(block_states(kv).values()) == ["cached", "sealed", "sealed", "sealed"]
    assert sorted(host_states(kv).values()) == ["free"] * 5 + ["saving"] * 3
    steps.complete()
    assert kv.pool.tier and [unit.indices[0] for unit in kv.pool.tier.saved] == order[:3]
    assert kv.offloaded_tokens == 12 and not kv.retiring and kv.available == 4
    assert steps.run() == ([(order[3], 3)], []) and steps.run() == ([], [])
    assert kv.offloaded_tokens == 16


def test_units_of_several_blocks_are_saved_whole():
    kv = manager(blocks=8, host_blocks=4, unit_blocks=2)
    steps = Steps(kv)
    turn(kv, "", prompt(1, 4))
    assert steps.run(saved=1) == ([], [])
    saves, _ = steps.run(saved=3)
    assert len(saves) == 2
    grown = kv.open(Hits([], 0))
    kv.grow(grown, 8)
    kv.release(grown, -1)
    assert len(find(kv, prompt(1, 4)).units) == 0  # its tail was saved, its head was not
    assert kv.evictions == 2 and len(kv.pool.index) == 1


def test_units_in_use_are_saved_where_the_host_has_room():
    kv = manager(host_blocks=2)
    steps = Steps(kv)
    blocks = compute(kv, prompt(1, 3))
    saves, _ = steps.launch()
    assert [device for device, _ in saves] == blocks.indices()[:2] and kv.available == 1 and not kv.retiring
    steps.complete()
    assert steps.run() == ([], [])
    kv.release(blocks, -1)
    assert kv.available == 4 and sorted(host_states(kv).values()) == ["offloaded", "offloaded"]


def test_an_evicted_unit_with_a_copy_is_found_and_comes_back():
    kv, steps = offloaded(prompt(1, 2))
    assert kv.evictions == 2 and sorted(host_states(kv).values()) == ["free", "free", "offloaded", "offloaded"]
    hits = find(kv, prompt(1, 2))
    assert len(hits.units) == 2 and (hits.idle_blocks, hits.reload_blocks) == (0, 2)
    kv.begin_step(ALL)
    blocks = start(kv, [*prompt(1, 2), 7])
    assert kv.is_ready(blocks) and kv.boarding_blocks and kv.available == 1
    assert sorted(block_states(kv).values()) == ["free", "loading", "loading", "writable"]
    saves, loads = steps.launch()
    assert not saves and [device for device, _ in loads] == blocks.indices()[:2] and not kv.boarding_blocks
    assert sorted(host_states(kv).values()) == ["free", "free", "loading", "loading"]
    assert kv.reloaded_tokens == 0
    steps.complete()
    assert kv.reloaded_tokens == 8 and sorted(block_states(kv).values()) == ["free", "sealed", "sealed", "writable"]
    assert sorted(host_states(kv).values()) == ["free", "free", "offloaded", "offloaded"]


def test_units_on_the_device_and_on_the_host_make_one_hit():
    kv, steps = offloaded(prompt(1, 4), blocks=5)
    steps.run()
    kv.begin_step(ALL)
    head = start(kv, prompt(1, 2))
    steps.run()
    kv.release(head, -1)
    hits = find(kv, prompt(1, 4))
    assert (len(hits.units), hits.idle_blocks, hits.reload_blocks) == (4, 2, 2)
    other = compute(kv, prompt(2, 1))
    blocks = start(kv, prompt(1, 4))
    assert len(blocks.indices()) == 4 and kv.available == 0
    assert other.live


def test_taking_hits_first_keeps_loads_from_evicting_them():
    kv, steps = offloaded(prompt(1, 2), blocks=2)
    kv.begin_step(ALL)
    head = start(kv, prompt(1, 1))
    steps.run()
    kv.release(head, -1)
    turn(kv, "", prompt(2, 1))
    kept = find(kv, prompt(1, 1)).units[0].indices
    blocks = start(kv, prompt(1, 2))
    assert blocks.indices()[:1] == [*kept] and len(blocks.indices()) == 2
    assert find(kv, prompt(2, 1)).units == []


def test_two_sequences_share_one_load():
    kv, steps = offloaded(prompt(1, 2))
    kv.begin_step(ALL)
    first = start(kv, prompt(1, 2))
    hits = find(kv, prompt(1, 2))
    assert (hits.idle_blocks, hits.reload_blocks) == (0, 0)
    second = start(kv, [*prompt(1, 2), 5])
    assert first.indices() == second.indices()[:2] and kv.is_ready(second)
    _, loads = steps.launch()
    assert len(loads) == 2
    third = start(kv, prompt(1, 2))
    assert kv.is_ready(third) and steps.launch()[1] == []
    kv.complete_step(steps.number)
    assert kv.reloaded_tokens == 8 and {block.unit.users for block in first.sealed} == {3}


def test_loads_are_spread_over_steps_in_order():
    kv, steps = offloaded(prompt(1, 2), prompt(2, 2), blocks=4)
    kv.begin_step(1)
    first = start(kv, prompt(1, 2))
    second = start(kv, prompt(2, 1))
    assert not kv.is_ready(first) and not kv.is_ready(second)
    _, loads = steps.launch(loaded=1)
    assert [device for device, _ in loads] == first.indices()[:1]
    kv.begin_step(0)  # one at least, so that who waits gets on
    assert kv.is_ready(first) and not kv.is_ready(second)
    late = start(kv, prompt(1, 1))
    assert kv.is_ready(late)  # what it wants left before
    assert [device for device, _ in steps.launch(loaded=0)[1]] == first.indices()[1:]
    assert [device for device, _ in steps.launch(loaded=2)[1]] == second.indices()
    assert kv.is_ready(second)
    steps.complete()


def test_a_budget_counts_what_boards_while_the_step_is_planned():
    kv, steps = offloaded(prompt(1, 2), prompt(2, 2))
    kv.begin_step(3)
    first, second = start(kv, prompt(1, 2)), start(kv, prompt(2, 2))
    kv.begin_step(3)
    assert kv.is_ready(first) and not kv.is_ready(second)
    assert len(steps.launch(loaded=3)[1]) == 3 and len(steps.launch(loaded=3)[1]) == 1


def test_a_step_carries_as_many_loads_as_it_may():
    kv, steps = offloaded(prompt(1, 2), prompt(2, 2))
    kv.begin_step(3)
    start(kv, prompt(1, 2))
    start(kv, prompt(2, 2))
    _, loads = kv.launch(steps.number + 1, ALL)
    assert len(pairs(loads)) == 3 and {copies.pool for copies in loads} == {0}


def test_a_load_that_nobody_waits_for_any_more_is_dropped():
    kv, steps = offloaded(prompt(1, 2))
    kv.begin_step(1)
    first = start(kv, prompt(1, 2))
    second = start(kv, prompt(1, 2))
    kv.release(first, -1)
    check_kv(kv)
    assert not kv.is_ready(second) and kv.available == 2
    kv.release(second, -1)
    check_kv(kv)
    assert kv.available == 3 and kv.retiring and kv.retiring_blocks() == 1
    assert kv.retiring_blocks({find(kv, prompt(1, 1)).units[0]}) == 0
    _, loads = steps.launch(loaded=1)
    assert len(loads) == 1
    steps.complete()
    assert kv.available == 4 and sorted(block_states(kv).values()) == ["cached", "free", "free", "free"]
    assert len(find(kv, prompt(1, 2)).units) == 2


def test_a_sequence_joins_a_load_whose_first_reader_left():
    kv, steps = offloaded(prompt(1))
    kv.begin_step(1)
    kv.release(start(kv, prompt(1)), -1)
    blocks = start(kv, prompt(1))
    assert kv.is_ready(blocks) and kv.reclaimable(blocks) == 1
    kv.release(blocks, -1)
    hits = find(kv, prompt(1))
    assert len(hits.units) == 1 and (hits.idle_blocks, hits.reload_blocks) == (0, 0)  # its block is taken already
    blocks = start(kv, prompt(1))
    assert len(steps.run()[1]) == 1 and sorted(block_states(kv).values()) == ["free", "free", "free", "sealed"]


def test_a_failed_save_is_tried_again():
    kv = manager()
    steps = Steps(kv)
    turn(kv, "", prompt(1))
    blocks = compute(kv, prompt(2))
    saves, _ = steps.launch()
    assert len(saves) == 2
    assert not steps.fail()
    assert kv.offloaded_tokens == 0 and set(host_states(kv).values()) == {"free"}
    assert {device for device, _ in steps.run()[0]} == {device for device, _ in saves}
    kv.release(blocks, -1)


def test_a_failed_load_is_read_by_nobody_and_its_copy_is_given_up():
    kv, steps = offloaded(prompt(1, 2))
    kv.begin_step(ALL)
    blocks = start(kv, prompt(1, 2))
    steps.launch()
    assert steps.fail() and kv.is_spoilt(blocks)
    assert find(kv, prompt(1, 2)).units == [] and set(host_states(kv).values()) == {"free"}
    other = compute(kv, prompt(1, 2))
    assert not set(other.indices()) & set(blocks.indices()) and not kv.is_spoilt(other)
    kv.release(blocks, -1)
    check_kv(kv)
    assert sorted(block_states(kv).values()) == ["free", "free", "sealed", "sealed"] and kv.reloaded_tokens == 0


def test_a_failed_load_without_readers_frees_its_blocks():
    kv, steps = offloaded(prompt(1))
    kv.begin_step(ALL)
    kv.release(start(kv, prompt(1)), -1)
    steps.launch()
    assert not steps.fail()
    assert set(block_states(kv).values()) == {"free"} and find(kv, prompt(1)).units == []


def test_only_the_failed_step_is_dropped():
    kv, steps = offloaded(prompt(1), prompt(2))
    kv.begin_step(1)
    first, second = start(kv, prompt(1)), start(kv, prompt(2))
    steps.launch(loaded=1)
    steps.launch(loaded=1)
    failed = steps.number - 1
    assert kv.fail_step(failed)
    kv.complete_step(failed)
    check_kv(kv)
    assert kv.is_spoilt(first) and not kv.is_spoilt(second)
    kv.complete_step(failed + 1)
    check_kv(kv)
    assert kv.reloaded_tokens == 4


def test_what_is_computed_anew_takes_the_place_of_what_the_host_alone_has():
    kv, steps = offloaded(prompt(1))
    unit = find(kv, prompt(1)).units[0]
    chain, encoded = chain_of(kv, prompt(1))
    blocks = kv.open(Hits([], 0))
    kv.grow(blocks, 1)
    kv.seal(blocks, chain.digests[1], chain.digests[0], encoded)
    check_kv(kv)
    assert blocks.sealed[0].unit is unit and unit.host and unit.indices == tuple(blocks.indices())
    assert steps.run() == ([], [])


def test_what_is_computed_while_it_is_loaded_stays_its_sequences_own():
    kv, _ = offloaded(prompt(1))
    chain, encoded = chain_of(kv, prompt(1))
    own = kv.open(Hits([], 0))
    kv.grow(own, 1)
    kv.begin_step(ALL)
    loading = start(kv, prompt(1))
    kv.seal(own, chain.digests[1], chain.digests[0], encoded)
    check_kv(kv)
    assert own.sealed[0].unit is not loading.sealed[0].unit
    kv.release(own, -1)
    check_kv(kv)
    assert kv.available == 3


def test_loads_of_later_steps_are_still_under_way():
    kv, steps = offloaded(prompt(1), prompt(2))
    kv.begin_step(1)
    start(kv, prompt(1))
    start(kv, prompt(2))
    steps.launch(loaded=1)
    first = steps.number
    steps.launch(loaded=1)
    kv.complete_step(first)
    check_kv(kv)
    assert sorted(block_states(kv).values()) == ["free", "free", "loading", "sealed"] and kv.reloaded_tokens == 4


def test_a_manager_without_a_tier_copies_nothing():
    kv = manager(host_blocks=0)
    steps = Steps(kv)
    turn(kv, "", prompt(1))
    assert not kv.has_tier and not kv.boarding_blocks and kv.bytes_per_block == 0 and not KvManager(4, 4, 4, "kv").has_tier
    assert (kv.host_usage, kv.kept_tokens, kv.tokens) == (0.0, 16, 16)
    assert steps.launch() == ([], []) and not steps.fail()
    assert kv.is_ready(compute(kv, prompt(1)))


def test_an_equal_digest_of_other_tokens_does_not_take_the_place_of_what_the_host_has(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tokenspeed.runtime.scheduling.prefix.unit_digest", lambda parent, tokens: b"collision")
    kv, _ = offloaded(prompt(1))
    unit = find(kv, prompt(1)).units[0]
    other = compute(kv, prompt(2))
    assert other.sealed[0].unit is not unit and find(kv, prompt(1)).units == [unit]
    kv.release(other, -1)
    check_kv(kv)
    assert kv.available == 4


def test_a_tier_needs_sharing_and_loads_need_blocks():
    assert not KvManager(4, 4, 4, "kv", share=False, host_blocks=4).has_tier
    kv, _ = offloaded(prompt(1), blocks=4)
    kv.grow(kv.open(Hits([], 0)), 4)
    with pytest.raises(OutOfBlocks):
        kv.grow(kv.open(Hits([], 0)), 1)


def test_blocks_on_their_way_become_available_with_their_step():
    kv = manager(blocks=8, host_blocks=8, unit_blocks=2)
    steps = Steps(kv)
    turn(kv, "", prompt(1, 4))
    units = find(kv, prompt(1, 4)).units
    held = compute(kv, prompt(2, 1))
    assert kv.retiring_blocks() == 0 and not kv.retiring
    steps.launch()
    assert kv.retiring_blocks() == 4 and kv.retiring and kv.retiring_blocks({units[1]}) == 2
    kv.release(held, steps.number)
    assert kv.retiring_blocks() == 5 and kv.retiring_blocks(set(units)) == 1
    steps.complete()
    assert kv.retiring_blocks() == 0 and not kv.retiring


def test_a_load_that_a_step_carries_for_nobody_is_on_its_way():
    kv, steps = offloaded(prompt(1))
    kv.begin_step(ALL)
    blocks = start(kv, prompt(1))
    steps.launch()
    assert kv.retiring_blocks() == 0 and not kv.retiring
    kv.release(blocks, -1)
    assert kv.retiring_blocks() == 1 and kv.retiring and kv.available == 3
    steps.complete()
    assert not kv.retiring and kv.available == 4


def test_a_step_loads_as_many_units_as_its_blocks_make():
    kv = manager(blocks=8, host_blocks=8, unit_blocks=2)
    steps = Steps(kv)
    turn(kv, "", prompt(1, 8))
    steps.run()
    empty = kv.open(Hits([], 0))
    kv.grow(empty, 8)
    kv.release(empty, -1)
    kv.begin_step(5)
    blocks = start(kv, prompt(1, 8))
    assert not kv.is_ready(blocks)
    assert [len(steps.launch(loaded=loaded)[1]) for loaded in (5, 1)] == [4, 2] and not kv.is_ready(blocks)
    kv.begin_step(0)
    assert kv.is_ready(blocks)


def test_whether_something_is_to_be_copied():
    kv = manager(blocks=8)
    steps = Steps(kv)
    assert not kv.has_unsaved
    turn(kv, "", prompt(1))
    assert kv.has_unsaved
    steps.run()
    assert not kv.has_unsaved
    blocks = compute(kv, prompt(2))
    assert kv.has_unsaved, "what is in use counts"
    steps.run()
    assert not kv.has_unsaved and blocks.live
    kv = manager(host_blocks=0)
    turn(kv, "", prompt(1))
    assert not kv.has_unsaved


def test_blocks_last_touched_by_a_completed_step_come_back_at_once():
    kv = manager(host_blocks=0)
    blocks = compute(kv, prompt(1))
    kv.complete_step(3)
    kv.complete_step(2)
    kv.release(blocks, 3)
    assert kv.available == 4 and not kv.retiring


def test_without_a_disk_nothing_is_fetched():
    kv, _ = offloaded(prompt(1))
    assert kv.fetch(find(kv, prompt(1))) == set()
    kv = manager(host_blocks=0)
    turn(kv, "", prompt(1))
    assert kv.fetch(find(kv, prompt(1))) == set()
