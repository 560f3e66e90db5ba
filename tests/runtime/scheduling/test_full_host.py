"""What the tier in host memory saves first, and what it gives up where it is full, played on the KV manager alone."""

from __future__ import annotations

from tokenspeed.runtime.scheduling.blocks import Reuse
from tokenspeed.runtime.scheduling.kv_integrity import check_kv
from tokenspeed.runtime.scheduling.sequence_blocks import Hits

from .kv_helpers import compute, find, turn
from .tier_helpers import ALL, Steps, manager, offloaded, prompt, start


def test_a_unit_used_while_it_is_saved_is_the_most_recent():
    kv = manager(host_blocks=1)
    steps = Steps(kv)
    turn(kv, "", prompt(1))
    turn(kv, "", prompt(2))
    steps.launch(saved=1)
    kv.release(start(kv, prompt(1)), -1)
    steps.complete()
    assert [block.unit for block in kv.pool.cached] == find(kv, prompt(2)).units + find(kv, prompt(1)).units


def test_a_full_host_gives_up_spare_copies_first_the_newest_before_all():
    kv, steps = offloaded(prompt(1), prompt(2), prompt(3), host_blocks=3)
    kv.begin_step(ALL)
    held = [start(kv, prompt(1)), start(kv, prompt(2))]
    steps.run()
    turn(kv, "", prompt(4))
    assert find(kv, prompt(3)).reload_blocks == 1
    kv.grow(held[0], 1)
    saves, _ = steps.run()
    assert len(saves) == 1 and find(kv, prompt(3)).units  # prompt 2, in use and last to come back, is on the device alone
    assert not find(kv, prompt(2)).units[0].host and find(kv, prompt(1)).units[0].host
    kv.release(held[1], -1)
    assert steps.run()[0] == []  # nothing else is worth less than what may be evicted soon, and enough is ready
    check_kv(kv)


def test_a_full_host_gives_up_a_spare_copy_where_it_has_no_other():
    kv, steps = offloaded(prompt(1), host_blocks=1)
    kv.begin_step(ALL)
    start(kv, prompt(1))
    steps.run()
    held = compute(kv, prompt(5, 2))
    turn(kv, "", prompt(2))
    assert len(steps.run()[0]) == 1 and held.live and not find(kv, prompt(1)).units[0].host


def test_copies_of_what_nobody_will_want_go_before_spare_ones():
    kv = manager(blocks=4, host_blocks=2)
    kv.retention.supersede = True
    steps = Steps(kv)
    turn(kv, "one", prompt(1))
    turn(kv, "", prompt(2))
    steps.run()
    start(kv, prompt(2))
    kv.close_session("one")
    turn(kv, "", prompt(3))
    assert len(steps.run()[0]) == 1
    assert not find(kv, prompt(1)).units[0].host and find(kv, prompt(2)).units[0].host


def test_a_full_host_gives_up_the_oldest_of_what_it_alone_has():
    kv, steps = offloaded(prompt(1), prompt(2), host_blocks=2)
    held = compute(kv, prompt(5, 3))
    turn(kv, "", prompt(3))
    assert len(steps.run()[0]) == 1
    assert find(kv, prompt(1)).units == [] and find(kv, prompt(2)).units and prompt(1)
    assert held.live and set(kv.pool.index) >= {block.unit.digest for block in held.sealed}


def test_a_full_host_keeps_what_is_worth_more():
    kv, steps = offloaded(prompt(1), host_blocks=1)
    unit = find(kv, prompt(1)).units[0]
    unit.reuse, unit.since = Reuse.TOOL, kv.clock.now
    kv.pool.regard(unit)
    held = compute(kv, prompt(5, 3))
    turn(kv, "", prompt(3))
    assert steps.run()[0] == [] and find(kv, prompt(1)).units and held.live
    kv.clock.now = 1000.0
    assert len(steps.run()[0]) == 1 and find(kv, prompt(1)).units == []


def test_a_full_host_saves_nothing_while_enough_can_be_evicted_for_nothing():
    kv, steps = offloaded(prompt(1), prompt(2), blocks=8, host_blocks=2)
    turn(kv, "", prompt(3))
    assert steps.run() == ([], []) and find(kv, prompt(1)).units


def test_what_nobody_will_want_is_not_saved_and_its_copy_goes_first():
    kv = manager(host_blocks=1)
    kv.retention.supersede = True
    steps = Steps(kv)
    turn(kv, "one", prompt(1))
    steps.run()
    kv.close_session("one")
    check_kv(kv)
    turn(kv, "", prompt(2))
    turn(kv, "two", prompt(3))
    kv.close_session("two")
    saves, _ = steps.run()
    assert len(saves) == 1 and find(kv, prompt(2)).units[0].host and not find(kv, prompt(3)).units[0].host
    assert not find(kv, prompt(1)).units[0].host
    check_kv(kv)


def test_no_more_is_saved_of_units_in_use_than_a_step_copies():
    kv = manager()
    steps = Steps(kv)
    assert compute(kv, prompt(1, 3)).live
    assert [len(steps.run(saved=count)[0]) for count in (1, 0, 2)] == [1, 0, 2]


def test_enough_to_evict_counts_blocks_not_units():
    kv = manager(blocks=16, host_blocks=2, unit_blocks=2)
    kv.retention.supersede = True
    steps = Steps(kv)
    turn(kv, "", prompt(1, 2))
    assert len(steps.run()[0]) == 2
    turn(kv, "gone", prompt(2, 2))
    kv.close_session("gone")
    held = compute(kv, prompt(5, 10))
    turn(kv, "", prompt(3, 2))
    turn(kv, "", prompt(1, 2))
    assert held.live and not kv.pool.free
    assert steps.run() == ([], [])  # two units of two blocks can be evicted without loss: a quarter of the pool


def test_cached_units_that_lost_their_copy_are_unsaved_again():
    kv, steps = offloaded(prompt(1), blocks=8, host_blocks=1)
    kv.begin_step(ALL)
    back = start(kv, prompt(1))
    steps.run()
    held = compute(kv, prompt(5, 6))
    turn(kv, "", prompt(2))
    kv.release(back, -1)  # its copy is a spare one
    assert len(steps.run()[0]) == 1 and held.live
    assert not find(kv, prompt(1)).units[0].host and find(kv, prompt(2)).units[0].host
    assert [unit.tokens for unit in kv.pool.tier.unsaved] == [find(kv, prompt(1)).units[0].tokens] if kv.pool.tier else False


def test_how_full_the_host_is():
    kv, _ = offloaded(prompt(1, 2), host_blocks=8)
    assert kv.host_usage == 0.25 and kv.kept_tokens == 16 + 32 // 2


def test_what_is_wanted_after_all_is_saved_and_what_is_not_is_not():
    kv = manager()
    kv.retention.by_reuse = kv.retention.supersede = True
    steps = Steps(kv)
    turn(kv, "one", prompt(1))
    kv.close_session("one")
    check_kv(kv)
    assert kv.launch(0, ALL) == ((), ())
    kv.end_turn("one", "tool_call")
    check_kv(kv)
    assert len(steps.run()[0]) == 1
    empty = kv.open(Hits([], 0))
    kv.grow(empty, 4)
    kv.end_turn("one", "end_of_turn")  # the host alone has it
    check_kv(kv)
    assert find(kv, prompt(1)).reload_blocks == 1 and steps.run() == ([], [])


def test_what_lost_its_copy_is_saved_after_what_has_waited():
    kv, steps = offloaded(prompt(1), blocks=8, host_blocks=1)
    kv.begin_step(ALL)
    back = start(kv, prompt(1))
    steps.run()
    held = compute(kv, prompt(5, 5))
    turn(kv, "", prompt(2))
    turn(kv, "", prompt(3))
    kv.release(back, -1)
    assert len(steps.run(saved=1)[0]) == 1 and held.live and kv.pool.tier is not None
    assert [unit.tokens for unit in kv.pool.tier.unsaved] == [find(kv, prompt(which)).units[0].tokens for which in (3, 1)]
