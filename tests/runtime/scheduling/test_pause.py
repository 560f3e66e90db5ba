"""A machine with nothing to compute saves what is cached to the host, a little at a time, until there is nothing left."""

from __future__ import annotations

import pytest
from tokenspeed.runtime.scheduling.costs import StepCosts
from tokenspeed.runtime.scheduling.groups import GroupedScheduler
from tokenspeed.runtime.scheduling.kv import KvManager
from tokenspeed.runtime.scheduling.request import SchedulerLimits
from tokenspeed.runtime.scheduling.scheduler import Scheduler
from tokenspeed.runtime.scheduling.sequence_blocks import Hits
from tokenspeed.runtime.scheduling.state import LEAST_COPY_SECONDS
from tokenspeed.tests.plans.sample_plan import sample_manifest

from .kv_helpers import find, turn
from .shadow import ShadowDevice, make_request, run_to_end
from .tier_helpers import ALL, Steps, manager, prompt, start

LIMITS = SchedulerLimits(32, 8, 8, 16, 64, 64)
PROMPT = list(range(30))


def machine(host_blocks: int, seconds: float | None = None) -> tuple[Scheduler, KvManager, ShadowDevice]:
    """With eight full units cached, none of them saved: steps with rows copy nothing. The link takes `seconds` for a block."""
    kv = KvManager(16, 4, 4, "pause", host_blocks=host_blocks, bytes_per_block=1)
    costs = None if seconds is None else StepCosts([sample_manifest().performance], (), 64, copy_rate=1 / seconds)
    scheduler = Scheduler(LIMITS, kv, costs=costs)
    device = ShadowDevice(kv, LIMITS)
    asked = scheduler._state.copied_blocks
    scheduler._state.copied_blocks = lambda work: asked(None) if work is None else 0
    request = make_request("r", PROMPT, 3)
    scheduler.submit(request)
    device.enter(request)
    run_to_end(scheduler, device)
    assert len(kv.pool.cached) == 8 and kv.offloaded_tokens == 0
    return scheduler, kv, device


def pause(scheduler: Scheduler, device: ShadowDevice, most: int = 50) -> list[int]:
    """How many blocks each of the steps saves that there are until there is none."""
    saved: list[int] = []
    while (batch := scheduler.schedule()) is not None:
        assert not batch.rows and not batch.loads and scheduler.has_work
        device.launch(batch)
        assert scheduler.schedule() is None, "one at a time"
        done, sampled = device.finish_oldest()
        assert scheduler.complete(done.step_id, sampled) == []
        scheduler.check_integrity()
        saved.append(sum(len(copies.device) for copies in batch.saves))
        assert len(saved) <= most, "without end"
    return saved


def test_a_pause_saves_what_is_cached_and_ends():
    scheduler, kv, device = machine(16)
    assert pause(scheduler, device) == [8] and not scheduler.has_work
    assert kv.offloaded_tokens == 32 == device.saved and pause(scheduler, device) == []


def test_a_step_of_a_pause_takes_a_few_milliseconds():
    scheduler, _, device = machine(16, LEAST_COPY_SECONDS / 3.5)
    assert pause(scheduler, device) == [3, 3, 2]


def test_a_step_of_a_pause_saves_a_unit_however_slow_the_link_is():
    scheduler, _, device = machine(16, LEAST_COPY_SECONDS * 10)
    assert pause(scheduler, device) == [1] * 8


@pytest.mark.parametrize("host_blocks", [1, 3, 5])
def test_a_pause_with_a_small_host_ends(host_blocks: int):
    scheduler, kv, device = machine(host_blocks)
    assert sum(pause(scheduler, device)) == host_blocks and kv.host_usage == 1


def test_a_request_that_comes_meanwhile_has_the_next_step():
    scheduler, _, device = machine(16, LEAST_COPY_SECONDS)
    batch = scheduler.schedule()
    assert batch is not None and not batch.rows
    device.launch(batch)
    request = make_request("next", [*PROMPT, 5], 3)
    scheduler.submit(request)
    device.enter(request)
    following = scheduler.schedule()
    assert following is not None and following.rows and following.request_ids == ("next",)
    device.launch(following)
    for _ in range(2):
        done, sampled = device.finish_oldest()
        scheduler.complete(done.step_id, sampled)
    run_to_end(scheduler, device)
    assert scheduler.stats().prefix_hits == 28


def test_nothing_is_saved_while_a_step_is_in_flight():
    scheduler, _, device = machine(16)
    request = make_request("next", [99] * 3, 1)
    scheduler.submit(request)
    device.enter(request)
    batch = scheduler.schedule()
    assert batch is not None and batch.rows and scheduler.schedule() is None
    device.launch(batch)
    done, sampled = device.finish_oldest()
    scheduler.complete(done.step_id, sampled)
    assert sum(pause(scheduler, device)) == 8


def test_what_a_failed_step_was_to_save_is_saved_by_the_next():
    scheduler, kv, device = machine(16)
    batch = scheduler.schedule()
    assert batch is not None
    device.launch(batch)
    device.fail_oldest()
    assert scheduler.fail(batch.step_id) == [] and not scheduler.has_work
    scheduler.check_integrity()
    assert pause(scheduler, device) == [8] and kv.offloaded_tokens == 32


def test_each_group_saves_in_its_own_pause():
    made = [machine(16), machine(16)]
    groups = GroupedScheduler([scheduler for scheduler, _, _ in made], 4)
    step = groups.schedule()
    assert step is not None and step.rows == 0 and groups.has_work
    saved = [0 if part is None else sum(len(copies.device) for copies in part.saves) for part in step.parts]
    assert saved == [8, 8] and groups.complete(step.step_id, []) == []
    assert groups.schedule() is None and not groups.has_work


def test_no_copy_goes_for_that_of_something_that_is_evicted_later():
    """A host that is small beside the device: without that rule each step would save what the last one gave up."""
    kv = manager(8, 1)
    steps = Steps(kv)
    for number in range(8):
        turn(kv, "", prompt(number))
    assert [len(steps.run(saved=1)[0]) for _ in range(4)] == [1, 0, 0, 0]
    assert find(kv, prompt(0)).units[0].host
    turn(kv, "", prompt(0))  # it is the most recent now, and its copy spare
    assert [len(steps.run(saved=1)[0]) for _ in range(4)] == [1, 0, 0, 0]
    assert find(kv, prompt(1)).units[0].host and not find(kv, prompt(0)).units[0].host


def test_no_spare_copy_goes_for_that_of_something_that_is_evicted_later():
    kv = manager(8, 1)
    steps = Steps(kv)
    turn(kv, "", prompt(0))
    steps.run()
    for number in range(8):
        turn(kv, "", prompt(number))
    assert steps.run()[0] == [] and find(kv, prompt(0)).units[0].host


def test_all_kinds_together_are_no_more_than_a_step_copies():
    kv = manager(8, 8)
    kv.retention.by_reuse = True
    steps = Steps(kv)
    turn(kv, "", prompt(1, 2))
    turn(kv, "one", prompt(2, 3))
    assert [len(steps.run(saved=3)[0]) for _ in range(3)] == [3, 2, 0]


def test_how_much_a_step_is_to_load():
    kv = manager(8, 8, unit_blocks=2)
    steps = Steps(kv)
    turn(kv, "", prompt(1, 4))
    steps.run()
    kv.grow(kv.open(Hits([], 0)), 8)
    kv.release(next(iter(kv.open_sequences())), -1)
    kv.begin_step(ALL)
    start(kv, prompt(1, 4))
    assert kv.boarding_blocks == 4
    steps.run(loaded=0)
    assert kv.boarding_blocks == 0
