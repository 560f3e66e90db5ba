"""The tier on disk, played on the KV manager alone: what gives way to what, there and on the host, and what is refused."""

from __future__ import annotations

import pytest
from tokenspeed.plans.errors import PlanError
from tokenspeed.runtime.scheduling.blocks import Reuse
from tokenspeed.runtime.scheduling.disk_tier import MOST_STORES
from tokenspeed.runtime.scheduling.errors import SchedulerMisuse
from tokenspeed.runtime.scheduling.kv import KvManager
from tokenspeed.runtime.scheduling.kv_integrity import check_kv, disk_states
from tokenspeed.runtime.scheduling.sequence_blocks import Hits

from .disk_helpers import empty_host, end, fill_device, restored, tokens_of, unit_of, with_disk, written
from .kv_helpers import chain_of, compute, find, turn
from .tier_helpers import ALL, Steps, manager, prompt, start


def test_a_full_disk_gives_way_to_what_was_used_later_and_is_not_written_for_ever():
    kv, _ = with_disk(prompt(1), prompt(2), prompt(3), prompt(4), places=2)
    assert tokens_of(written(kv)) == [100, 200, 300, 400] and kv.disk_jobs() == []
    on_disk = {unit.tokens[:4] for unit in kv.pool.index.values() if unit.place >= 0}
    assert on_disk == {(300).to_bytes(4, "little"), (400).to_bytes(4, "little")}
    turn(kv, "", prompt(1))
    assert tokens_of(written(kv)) == [100] and find(kv, prompt(3)).units[0].place < 0 <= find(kv, prompt(4)).units[0].place


def test_a_full_disk_keeps_what_is_expected_sooner():
    kv, _ = with_disk(prompt(1), places=1)
    unit = find(kv, prompt(1)).units[0]
    unit.reuse, unit.since = Reuse.TOOL, kv.clock.now
    kv.pool.regard(unit)
    written(kv)
    turn(kv, "", prompt(2))
    Steps(kv).run()
    assert written(kv) == [] and unit.place == 0
    kv.clock.now = 1000.0
    turn(kv, "", prompt(2))
    assert tokens_of(written(kv)) == [200] and unit.place < 0


def test_a_full_disk_keeps_what_is_worth_as_much():
    """Neither was given back yet: one is in use, the other was there at the start."""
    kv, steps = restored(prompt(1), places=1)
    held = compute(kv, prompt(2))
    steps.run()
    assert kv.disk_jobs() == [] and find(kv, prompt(1)).units and held.live


def test_what_left_the_disk_last_is_not_found():
    kv, steps = restored(prompt(1), places=1)
    turn(kv, "", prompt(2))
    steps.run()
    assert tokens_of(written(kv)) == [200] and find(kv, prompt(1)).units == []


def test_what_the_device_has_is_known_without_any_copy_below():
    kv, steps = with_disk(prompt(1), places=1)
    written(kv)
    held = start(kv, prompt(1))
    empty_host(kv)
    turn(kv, "", prompt(2))
    assert len(steps.run(saved=1)[0]) == 1
    assert tokens_of(written(kv)) == [200]
    unit = held.sealed[0].unit
    assert find(kv, prompt(1)).units == [unit] and not unit.host and unit.place < 0


def test_what_the_device_gives_up_is_found_on_disk():
    kv, _ = with_disk(prompt(1))
    written(kv)
    empty_host(kv)
    assert find(kv, prompt(1)).units[0].place == 0
    fill_device(kv)
    assert find(kv, prompt(1)).absent == 1


def test_what_is_being_loaded_is_not_written_before_it_is_there():
    kv, steps = with_disk(prompt(1))
    fill_device(kv)
    kv.begin_step(ALL)
    blocks = kv.open(find(kv, prompt(1)))
    check_kv(kv)
    assert kv.disk_jobs() == []
    steps.launch()
    assert kv.disk_jobs() == []
    steps.complete()
    assert len(written(kv)) == 1 and blocks.live


def test_what_is_being_read_gives_way_to_nobody():
    kv, steps = restored(prompt(1), places=1)
    kv.fetch(find(kv, prompt(1)))
    jobs = kv.disk_jobs()
    turn(kv, "", prompt(2))
    steps.run()
    assert kv.disk_jobs() == []
    end(kv, jobs)
    kv.clock.now = 1000.0
    assert tokens_of(written(kv)) == [200] and find(kv, prompt(1)).units[0].host


def test_no_more_is_written_at_a_time_than_is_to_be():
    kv, steps = with_disk(*(prompt(number) for number in range(1, 12)), blocks=16, host_blocks=16, places=16)
    jobs = kv.disk_jobs()
    assert len(jobs) == MOST_STORES and kv.disk is not None and kv.disk.in_flight == MOST_STORES
    end(kv, jobs[:1])
    assert len(kv.disk_jobs()) == 1 and steps.number


def test_what_nobody_will_want_is_not_written_and_leaves_first():
    kv = manager()
    kv.add_disk(2, 1.0)
    kv.retention.supersede = True
    steps = Steps(kv)
    for session in ("one", "two"):
        turn(kv, session, prompt(1 if session == "one" else 2))
        steps.run()
    kv.close_session("one")
    assert tokens_of(written(kv)) == [200]
    turn(kv, "three", prompt(3))
    steps.run()
    assert tokens_of(written(kv)) == [300]
    kv.close_session("three")
    turn(kv, "four", prompt(4))
    steps.run()
    assert tokens_of(written(kv)) == [400]
    assert find(kv, prompt(3)).units[0].place < 0 <= find(kv, prompt(2)).units[0].place
    kv.end_turn("one", "tool_call")
    check_kv(kv)


@pytest.mark.parametrize("spare", [False, True])
def test_what_is_wanted_after_all_is_written(spare: bool):
    kv = manager()
    kv.add_disk(2, 1.0)
    kv.retention.supersede = kv.retention.by_reuse = True
    turn(kv, "one", prompt(1))
    Steps(kv).run()
    if spare:
        turn(kv, "one", prompt(1))
    assert kv.pool.tier is not None and len(kv.pool.tier.spare) == spare
    kv.close_session("one")
    assert kv.disk_jobs() == []
    kv.end_turn("one", "tool_call")
    assert len(written(kv)) == 1


def test_the_host_gives_nothing_up_that_is_to_be_written_first():
    kv, steps = with_disk(prompt(1), host_blocks=1)
    fill_device(kv)
    held = compute(kv, prompt(5, 3))
    turn(kv, "", prompt(2))
    assert steps.run()[0] == []
    jobs = kv.disk_jobs()
    assert steps.run()[0] == []
    end(kv, jobs)
    assert len(steps.run()[0]) == 1 and held.live
    assert find(kv, prompt(1)).absent == 1


def test_a_fetch_makes_room_but_not_at_the_cost_of_what_it_is_for():
    kv, _ = restored(prompt(1), prompt(2), host_blocks=1)
    kv.fetch(find(kv, prompt(1)))
    end(kv, kv.disk_jobs())
    kv.fetch(find(kv, prompt(2)))
    end(kv, kv.disk_jobs())
    assert find(kv, prompt(1)).absent == 1 and find(kv, prompt(2)).absent == 0
    kv = manager(blocks=4, host_blocks=1)
    kv.add_disk(4, 1.0, [unit_of(kv, prompt(1, 3), place, place) for place in range(3)])
    hits = find(kv, prompt(1, 3))
    assert hits.absent == 3 and len(kv.fetch(hits)) == 1
    end(kv, kv.disk_jobs())
    assert kv.fetch(find(kv, prompt(1, 3))) == set()
    assert not find(kv, prompt(1, 3)).units[1].host and find(kv, prompt(1, 3)).units[0].host


def test_what_was_fetched_stays_for_who_waits_for_it():
    kv, steps = restored(prompt(1), host_blocks=1)
    kv.clock.now = 5000.0
    kv.fetch(find(kv, prompt(1)))
    end(kv, kv.disk_jobs())
    held = compute(kv, prompt(5, 3))
    turn(kv, "", prompt(2))
    assert steps.run()[0] == [] and find(kv, prompt(1)).absent == 0
    kv.clock.now = 6000.0  # nobody took it up
    assert len(steps.run()[0]) == 1 and find(kv, prompt(1)).absent == 1 and held.live


def test_a_fetch_keeps_what_the_host_has_of_the_prefix():
    """Its first unit is the host's oldest copy, the second is on disk."""
    kv = manager(blocks=8, host_blocks=2)
    kv.add_disk(8, 1.0, [unit_of(kv, prompt(1, 2), 0, number=1)])
    steps = Steps(kv)
    for number in (1, 2):
        turn(kv, "", prompt(number))
        steps.run()
        written(kv)
    fill_device(kv)
    hits = find(kv, prompt(1, 2))
    assert (hits.absent, hits.reload_blocks) == (1, 2) and len(kv.fetch(hits)) == 1
    end(kv, kv.disk_jobs())
    assert find(kv, prompt(1, 2)).absent == 0 and find(kv, prompt(2)).absent == 1


def test_a_fetch_takes_the_room_of_a_spare_copy():
    kv, steps = restored(prompt(1), host_blocks=1)
    held = compute(kv, prompt(2))
    steps.run()
    assert kv.pool.tier is not None and held.sealed[0].unit in kv.pool.tier.spare
    assert len(kv.fetch(find(kv, prompt(1)))) == 1 and not held.sealed[0].unit.host
    check_kv(kv)
    end(kv, kv.disk_jobs())


def test_a_fetch_brings_the_rest_and_touches_what_is_there():
    """The first unit is the host's oldest copy, the second is on disk: to make room another one goes."""
    kv = manager(blocks=8, host_blocks=2)
    kv.add_disk(8, 1.0, [unit_of(kv, prompt(1, 2), place, place) for place in range(2)])
    steps = Steps(kv)
    kv.fetch(kv.lookup(chain_of(kv, prompt(1, 2))[0].first(1), chain_of(kv, prompt(1, 2))[1]))
    end(kv, kv.disk_jobs())
    turn(kv, "", prompt(2))
    steps.run()
    written(kv)
    fill_device(kv)
    hits = find(kv, prompt(1, 2))
    assert hits.absent == 1 and hits.reload_blocks == 2 and len(kv.fetch(hits)) == 1
    end(kv, kv.disk_jobs())
    assert find(kv, prompt(1, 2)).absent == 0 and find(kv, prompt(2)).absent == 1


def test_units_of_several_blocks():
    kv, _ = with_disk(prompt(1, 2), blocks=8, host_blocks=4, places=3, unit_blocks=2)
    (job,) = kv.disk_jobs()
    assert len(job.host) == 2
    end(kv, [job])
    fill_device(kv)
    empty_host(kv)
    hits = find(kv, prompt(1, 2))
    assert hits.absent == 1 and hits.reload_blocks == 2 and kv.fetch(hits)
    (job,) = kv.disk_jobs()
    assert job.fetch and len(job.host) == 2
    end(kv, [job])
    assert find(kv, prompt(1, 2)).absent == 0


def test_how_long_it_takes_to_read():
    kv = KvManager(4, 4, 8, "kv", host_blocks=4, bytes_per_block=100)
    assert kv.fetch_seconds(Hits([], 0, 0, (), 3)) == 0.0 and kv.disk_usage == 0.0 and kv.disk_tokens == {}
    assert kv.disk_jobs() == [] and kv.fetch(Hits([], 0)) == set()
    kv.add_disk(4, 50.0)
    assert kv.fetch_seconds(Hits([], 0, 0, (), 3)) == 3 * 2 * 100 / 50.0


def test_what_was_restored_leaves_in_its_order_and_before_all_else():
    kv, steps = restored(prompt(1), prompt(2), places=3)
    for number in (3, 4):
        turn(kv, "", prompt(number))
        steps.run()
        written(kv)
    assert find(kv, prompt(1)).units == [] and find(kv, prompt(2)).units
    turn(kv, "", prompt(5))
    steps.run()
    written(kv)
    assert find(kv, prompt(2)).units == [] and find(kv, prompt(3)).units[0].place >= 0


def test_what_cannot_be_restored():
    kv = manager()
    one = unit_of(kv, prompt(1), 0)
    for units in ([one, unit_of(kv, prompt(2), 0)], [unit_of(kv, prompt(1), 4)]):
        with pytest.raises(SchedulerMisuse, match="not free"):
            manager().add_disk(4, 1.0, units)
    kv.add_disk(4, 1.0, [one, unit_of(kv, prompt(1), 3)])
    check_kv(kv)
    assert find(kv, prompt(1)).units[0].place == 3 and [*disk_states(kv).values()].count("stored") == 1
    with pytest.raises(PlanError, match="--host-kv"):
        manager(host_blocks=0).add_disk(4, 1.0)
    with pytest.raises(PlanError, match="serve without"):
        KvManager(4, 4, 4, "kv", host_blocks=4, windows=[(4, 8)]).add_disk(4, 1.0)
    for number in (0, 5):
        with pytest.raises(SchedulerMisuse, match=f"no job {number}"):
            kv.disk_done(number, True)
    with pytest.raises(SchedulerMisuse, match="no job 0"):
        manager().disk_done(0, True)


def test_what_is_said_where_a_disk_is_not_possible():
    with pytest.raises(PlanError) as none:
        manager(host_blocks=0).add_disk(2, 1.0)
    assert none.value.got == "no host_blocks" and none.value.fix == "compile the plan with --host-kv"
    with pytest.raises(PlanError) as windows:
        KvManager(8, 4, 4, "kv", host_blocks=4, windows=[(4, 8)]).add_disk(2, 1.0)
    assert windows.value.got == "1 windows" and windows.value.fix == "serve without --disk-kv"


def test_what_the_device_has_of_a_fetched_prefix_is_not_expected_sooner():
    kv = manager(blocks=8)
    kv.add_disk(4, 1.0, [unit_of(kv, prompt(1, 2), 0, number=1)])
    turn(kv, "", prompt(1, 1))
    hits = find(kv, prompt(1, 2))
    assert hits.absent == 1 and kv.fetch(hits)
    assert [unit.reuse for unit in hits.units] == [Reuse.IDLE, Reuse.TOOL]
