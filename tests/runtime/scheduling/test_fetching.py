"""Requests whose prefix is on disk: they wait for it out of the queue, and nobody waits for them."""

from __future__ import annotations

import numpy as np
import pytest
from tokenspeed.runtime.scheduling.costs import StepCosts
from tokenspeed.runtime.scheduling.errors import SchedulerMisuse
from tokenspeed.runtime.scheduling.kv import KvManager
from tokenspeed.runtime.scheduling.request import SchedulerLimits
from tokenspeed.runtime.scheduling.scheduler import Scheduler

from .disk_helpers import unit_of
from .shadow import make_request
from .test_costs import PERFORMANCE
from .tier_helpers import prompt

PREFIX, OTHER = prompt(1, 3), prompt(2, 2)


def scheduler_with(*stored: list[int], rate: float = 1.0, costs: StepCosts | None = None, host_blocks: int = 8) -> Scheduler:
    """With all full units of these prompts on disk."""
    kv = KvManager(16, 4, 4, "kv", host_blocks=host_blocks, bytes_per_block=1000)
    limits = SchedulerLimits(16, 4, 4, 16, 8, 64)
    scheduler = Scheduler(limits, kv, costs=costs)
    numbered = [(tokens, number) for tokens in stored for number in range(len(tokens) // 4)]
    scheduler.add_disk(16, rate, [unit_of(kv, tokens, place, number) for place, (tokens, number) in enumerate(numbered)])
    return scheduler


def step(scheduler: Scheduler) -> list[str]:
    """One step: whose rows it has."""
    batch = scheduler.schedule()
    scheduler.check_integrity()
    if batch is None:
        return []
    scheduler.complete(batch.step_id, np.ones(len(batch.logit_rows), np.int32))
    scheduler.check_integrity()
    return [*batch.request_ids]


def test_who_waits_for_the_disk_holds_nobody_up_and_has_its_place():
    scheduler = scheduler_with(PREFIX)
    scheduler.submit(make_request("back", [*PREFIX, 1], 2, priority=1))
    scheduler.submit(make_request("new", OTHER, 9, priority=2))
    assert step(scheduler) == ["new"]
    jobs = scheduler.disk_jobs()
    assert len(jobs) == 3 and all(job.fetch for job in jobs)
    told = scheduler.stats()
    assert (told.running, told.waiting) == (1, 1) and scheduler.has_work
    scheduler.submit(make_request("late", [9, 9, 9], 9, priority=5))
    for job in jobs[:2]:
        scheduler.disk_done(job.number, True)
        assert "back" not in step(scheduler)
    scheduler.disk_done(jobs[2].number, True)
    assert "back" in step(scheduler)
    told = scheduler.stats()
    assert told.prefix_hits == told.host_hits == told.fetched_tokens == told.reloaded_tokens == 12
    with pytest.raises(SchedulerMisuse):
        scheduler.disk_done(jobs[2].number, True)


def test_what_could_not_be_read_is_computed():
    scheduler = scheduler_with(PREFIX)
    scheduler.submit(make_request("back", [*PREFIX, 1], 2))
    assert step(scheduler) == []
    jobs = scheduler.disk_jobs()
    for job, well in zip(jobs, (True, False, True), strict=True):
        scheduler.disk_done(job.number, well)
    assert step(scheduler) == ["back"]
    told = scheduler.stats()
    assert (told.prefix_hits, told.fetched_tokens, told.refused_tokens) == (4, 8, 4)
    while scheduler.has_work:
        step(scheduler)


def test_one_who_leaves_while_it_waits():
    scheduler = scheduler_with(PREFIX)
    scheduler.submit(make_request("back", [*PREFIX, 1], 2))
    assert step(scheduler) == []
    jobs = scheduler.disk_jobs()
    outcome = scheduler.abort("back")
    assert outcome is not None and outcome.finish_reason == "abort" and not scheduler.has_work
    for job in jobs:
        scheduler.disk_done(job.number, True)
    scheduler.check_integrity()
    scheduler.submit(make_request("again", [*PREFIX, 1], 2))
    assert step(scheduler) == ["again"] and scheduler.stats().host_hits == 12


def test_two_wait_for_the_same():
    scheduler = scheduler_with(PREFIX)
    for name in ("one", "two"):
        scheduler.submit(make_request(name, [*PREFIX, 1], 2))
    assert step(scheduler) == []
    jobs = scheduler.disk_jobs()
    assert len(jobs) == 3
    for job in jobs:
        scheduler.disk_done(job.number, True)
    assert step(scheduler) == ["one", "two"] and scheduler.stats().fetched_tokens == 12


def test_it_is_fetched_once_and_then_computed():
    """The host has room for one unit only, so that the rest is computed."""
    scheduler = scheduler_with(PREFIX, host_blocks=1)
    scheduler.submit(make_request("back", [*PREFIX, 1], 2))
    assert step(scheduler) == []
    (job,) = scheduler.disk_jobs()
    scheduler.disk_done(job.number, True)
    assert step(scheduler) == ["back"] and scheduler.stats().prefix_hits == 4 and scheduler.disk_jobs() == []


def test_where_there_is_no_room_at_all_it_is_computed():
    scheduler = scheduler_with(PREFIX, OTHER, host_blocks=2)
    scheduler.submit(make_request("other", [*OTHER, 1], 2))
    scheduler.submit(make_request("back", [*PREFIX, 1], 2))
    assert step(scheduler) == ["back"]  # the host's blocks are being filled for the other
    assert len(scheduler.disk_jobs()) == 2 and scheduler.stats().prefix_hits == 0


@pytest.mark.parametrize(("rate", "reads"), [(1e6, True), (1e4, False)])
def test_what_is_sooner_computed_is_not_read(rate: float, reads: bool):
    scheduler = scheduler_with(PREFIX, rate=rate, costs=StepCosts([PERFORMANCE], (), 16, 1e9))
    scheduler.submit(make_request("back", [*PREFIX, 1], 2))
    assert (step(scheduler) == []) == reads and bool(scheduler.disk_jobs()) == reads
