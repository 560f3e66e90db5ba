"""The tier on disk, played on the KV manager alone: the states of a copy, what is written and what comes back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tokenspeed.runtime.scheduling.blocks import FreeBlock, FreeHostBlock, OffloadedBlock, seal
from tokenspeed.runtime.scheduling.errors import HandleConsumed, SchedulerMisuse
from tokenspeed.runtime.scheduling.kv import KvManager
from tokenspeed.runtime.scheduling.kv_integrity import check_kv, disk_states, host_states
from tokenspeed.runtime.scheduling.sequence_blocks import Hits, SequenceBlocks
from tokenspeed.runtime.scheduling.stored_blocks import FreePlace, store

from .disk_helpers import empty_host, end, fill_device, restored, tokens_of, with_disk, written
from .kv_helpers import chain_of, compute, find, turn
from .tier_helpers import ALL, prompt, start


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
