"""The tier on disk, played on the KV manager alone: what is written, what gives way, what comes back and what does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tokenspeed.plans.errors import PlanError
from tokenspeed.runtime.scheduling.blocks import FreeBlock, FreeHostBlock, OffloadedBlock, Reuse, seal
from tokenspeed.runtime.scheduling.disk_tier import MOST_STORES, DiskJob, StoredUnit
from tokenspeed.runtime.scheduling.errors import HandleConsumed, SchedulerMisuse
from tokenspeed.runtime.scheduling.kv import KvManager
from tokenspeed.runtime.scheduling.kv_integrity import check_kv, disk_states, host_states
from tokenspeed.runtime.scheduling.sequence_blocks import Hits, SequenceBlocks
from tokenspeed.runtime.scheduling.stored_blocks import FreePlace, store

from .kv_helpers import chain_of, compute, find, turn
from .tier_helpers import ALL, Steps, manager, prompt, start


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


def test_a_copy_goes_round_its_states():
    unit = seal([FreeBlock(0).write()], b"digest", b"parent", b"tokens").unit
    unit.host = (3,)
    copy, place = OffloadedBlock(unit), FreePlace(7)
    storing = store(copy, place)
    assert unit.storing and unit.place == -1 and storing.into == 7
    for use in (copy.evict, lambda: place.index, lambda: store(copy, FreePlace(1)), lambda: store(OffloadedBlock(unit), place)):
        with pytest.raises(HandleConsumed):
            use()
    again, freed = storing.fail()
    assert not unit.storing and unit.place == -1 and freed.index == 7
    again, stored = store(again, freed).done()
    assert not unit.storing and unit.place == 7
    with pytest.raises(SchedulerMisuse, match="host has"):
        stored.fetch([FreeHostBlock(1)])
    again.evict()
    host = FreeHostBlock(1)
    fetching = stored.fetch([host])
    assert fetching.into == (1,) and unit.place == 7 and not unit.host
    unit.host = (2,)
    with pytest.raises(SchedulerMisuse, match="host has"):
        fetching.done()
    stored, blocks = fetching.drop()
    assert [block.index for block in blocks] == [1] and unit.host == (2,)
    unit.host = ()
    fetching = stored.fetch(blocks)
    stored, offloaded = fetching.done()
    assert unit.host == (1,) and offloaded.unit is unit
    offloaded.evict()
    place, blocks = stored.fetch([FreeHostBlock(4)]).fail()
    assert unit.place == -1 and place.index == 7 and [block.index for block in blocks] == [4]
    used: list[Callable[[], object]] = [lambda: host.index, lambda: stored.unit, fetching.drop, lambda: fetching.into]
    used += [storing.done, storing.fail, lambda: storing.into, fetching.fail, stored.evict]
    for use in used:
        with pytest.raises(HandleConsumed):
            use()


def test_what_the_host_has_is_written_once():
    kv, _ = with_disk(prompt(1), prompt(2))
    jobs = kv.disk_jobs()
    assert tokens_of(jobs) == [100, 200] and not any(job.fetch for job in jobs) and len({job.unit.place for job in jobs}) == 2
    assert [job.host for job in jobs] == [find(kv, prompt(number)).units[0].host for number in (1, 2)]
    assert [*disk_states(kv).values()].count("storing") == [*host_states(kv).values()].count("storing") == 2
    assert kv.disk_jobs() == [] and kv.disk_tokens["stored_tokens"] == 0
    end(kv, jobs)
    assert kv.disk_jobs() == [] and kv.disk_tokens["stored_tokens"] == 8 and kv.disk_usage == 0.5
    turn(kv, "", prompt(1))
    assert kv.disk_jobs() == []


def test_it_is_found_on_disk_and_comes_back():
    kv, steps = with_disk(prompt(1), prompt(2))
    written(kv)
    fill_device(kv)
    empty_host(kv)
    hits = find(kv, prompt(1))
    assert (hits.absent, hits.reload_blocks, len(hits.units)) == (1, 1, 1)
    with pytest.raises(SchedulerMisuse, match="fetch them first"):
        kv.open(hits)
    assert kv.fetch_seconds(hits) == 0.0
    numbers = kv.fetch(hits)
    (job,) = kv.disk_jobs()
    assert numbers == {job.number} == kv.fetch(find(kv, prompt(1))) and job.fetch and tokens_of([job]) == [100]
    assert find(kv, prompt(1)).absent == 1 and host_states(kv)[job.host[0]] == "fetching"
    assert disk_states(kv)[job.unit.place] == "fetching"
    end(kv, [job])
    hits = find(kv, prompt(1))
    assert (hits.absent, hits.reload_blocks) == (0, 1) and hits.units[0].host == job.host and hits.units[0].place >= 0
    assert kv.disk_tokens == {"stored_tokens": 8, "fetched_tokens": 4, "refused_tokens": 0, "restored_tokens": 0}
    kv.begin_step(ALL)
    blocks = kv.open(hits)
    assert kv.is_ready(blocks)
    steps.run()
    kv.release(blocks, -1)
    check_kv(kv)
    assert find(kv, prompt(1)).reload_blocks == 0


def test_what_cannot_be_read_is_not_there():
    kv, _ = restored(prompt(1), prompt(2))
    assert kv.disk_tokens["restored_tokens"] == 8 and kv.fetch(find(kv, prompt(1)))
    end(kv, kv.disk_jobs(), well=False)
    assert find(kv, prompt(1)).units == [] and len(find(kv, prompt(2)).units) == 1
    assert kv.disk_tokens["refused_tokens"] == 4 and kv.disk_tokens["fetched_tokens"] == 0
    assert set(host_states(kv).values()) == {"free"} and [*disk_states(kv).values()].count("stored") == 1
    turn(kv, "", prompt(1))
    assert len(find(kv, prompt(1)).units) == 1


def test_what_could_not_be_written_is_tried_again_once_it_was_used():
    kv, _ = with_disk(prompt(1))
    assert len(written(kv, well=False)) == 1
    assert set(disk_states(kv).values()) == {"free"} and find(kv, prompt(1)).units[0].host and not kv.disk_tokens["stored_tokens"]
    turn(kv, "", prompt(1))
    assert len(written(kv)) == 1


def test_who_wants_what_is_being_written_waits_for_that():
    kv, steps = with_disk(prompt(1))
    fill_device(kv)
    (job,) = kv.disk_jobs()
    hits = find(kv, prompt(1))
    assert hits.absent == hits.reload_blocks == 1 and kv.fetch(hits) == {job.number} and kv.disk_jobs() == []
    end(kv, [job])
    hits = find(kv, prompt(1))
    assert hits.absent == 0
    kv.begin_step(ALL)
    kv.open(hits)
    steps.run()


def test_a_unit_in_use_is_written_and_stays_spare():
    kv, steps = with_disk()
    held = compute(kv, prompt(1))
    steps.run()
    (job,) = kv.disk_jobs()
    check_kv(kv)
    end(kv, [job])
    assert kv.pool.tier is not None and held.sealed[0].unit in kv.pool.tier.spare


def test_a_unit_taken_up_while_it_is_written_is_spare_then():
    kv, _ = with_disk(prompt(1))
    jobs = kv.disk_jobs()
    held = start(kv, prompt(1))
    end(kv, jobs)
    assert kv.pool.tier is not None and held.sealed[0].unit in kv.pool.tier.spare
    kv.release(held, -1)
    turn(kv, "", prompt(1))


def test_a_spare_unit_that_the_device_gives_up_while_it_is_written_is_not_spare_then():
    kv, _ = with_disk(prompt(1))
    kv.release(start(kv, prompt(1)), -1)
    assert kv.pool.tier is not None and len(kv.pool.tier.spare) == 1
    jobs = kv.disk_jobs()
    fill_device(kv)
    end(kv, jobs)
    assert not kv.pool.tier.spare and len(kv.pool.tier.copies) == 1


def test_a_spare_unit_stays_spare():
    kv, _ = with_disk(prompt(1))
    kv.release(start(kv, prompt(1)), -1)
    written(kv)
    assert kv.pool.tier is not None and len(kv.pool.tier.spare) == 1


def test_a_unit_computed_again_while_it_is_written():
    kv, _ = with_disk(prompt(1))
    fill_device(kv)
    jobs = kv.disk_jobs()
    held = computed_again(kv, prompt(1))
    end(kv, jobs)
    assert kv.pool.tier is not None and held.sealed[0].unit in kv.pool.tier.spare


def computed_again(kv: KvManager, tokens: list[int]) -> SequenceBlocks:
    """A sequence that computes a unit although it is known."""
    blocks = kv.open(Hits([], 0))
    kv.grow(blocks, 1)
    chain, encoded = chain_of(kv, tokens)
    kv.seal(blocks, chain.digests[1], chain.digests[0], encoded)
    check_kv(kv)
    return blocks


def test_a_unit_computed_again_while_it_is_read_has_one_copy_on_the_host():
    kv, steps = restored(prompt(1))
    kv.fetch(find(kv, prompt(1)))
    jobs = kv.disk_jobs()
    held = computed_again(kv, prompt(1))
    end(kv, jobs)
    assert kv.pool.tier is not None and held.sealed[0].unit in kv.pool.tier.spare and not kv.pool.tier.fresh
    assert steps.run() == ([], [])


def test_a_unit_computed_again_and_given_back_while_it_is_read():
    kv, steps = restored(prompt(1))
    kv.fetch(find(kv, prompt(1)))
    jobs = kv.disk_jobs()
    kv.release(computed_again(kv, prompt(1)), -1)
    assert kv.pool.tier is not None and len(kv.pool.tier.unsaved) == 1
    end(kv, jobs)
    assert not kv.pool.tier.unsaved and len(kv.pool.tier.copies) == 1 and steps.run() == ([], [])


@pytest.mark.parametrize("saved_first", [False, True])
def test_a_unit_saved_while_it_is_read_has_one_copy_on_the_host(saved_first: bool):
    kv, steps = restored(prompt(1))
    kv.fetch(find(kv, prompt(1)))
    jobs = kv.disk_jobs()
    computed_again(kv, prompt(1))
    assert len(steps.launch()[0]) == 1
    if saved_first:
        steps.complete()
    end(kv, jobs)
    if not saved_first:
        steps.complete()
    assert [*host_states(kv).values()].count("offloaded") == 1 and kv.disk_jobs() == []
    assert kv.disk_tokens["fetched_tokens"] == 4


def test_a_failed_load_takes_the_copy_on_disk_with_it():
    kv, steps = with_disk(prompt(1))
    written(kv)
    fill_device(kv)
    kv.begin_step(ALL)
    blocks = kv.open(find(kv, prompt(1)))
    steps.launch()
    assert steps.fail() and kv.is_spoilt(blocks)
    assert find(kv, prompt(1)).units == [] and set(disk_states(kv).values()) == {"free"}


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


def test_a_spare_copy_that_is_wanted_after_all_is_written():
    kv = manager()
    kv.add_disk(2, 1.0)
    kv.retention.supersede = kv.retention.by_reuse = True
    turn(kv, "one", prompt(1))
    Steps(kv).run()
    turn(kv, "one", prompt(1))
    assert kv.pool.tier is not None and len(kv.pool.tier.spare) == 1
    kv.close_session("one")
    assert kv.disk_jobs() == []
    kv.end_turn("one", "tool_call")
    assert len(written(kv)) == 1


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


def test_what_is_wanted_after_all_is_written():
    kv = manager()
    kv.add_disk(2, 1.0)
    kv.retention.supersede = kv.retention.by_reuse = True
    turn(kv, "one", prompt(1))
    Steps(kv).run()
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
