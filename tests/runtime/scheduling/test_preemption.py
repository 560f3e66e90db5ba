"""Who gives way, what that costs, and how often it may happen."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenspeed.runtime.scheduling.costs import NOMINAL_ROW_SECONDS, StepCosts
from tokenspeed.runtime.scheduling.kv import KvManager
from tokenspeed.runtime.scheduling.policy import AGENTIC, PLAIN, Policy
from tokenspeed.runtime.scheduling.request import SchedulerLimits
from tokenspeed.runtime.scheduling.scheduler import Scheduler
from tokenspeed.runtime.scheduling.step import StepBatch

from .shadow import make_request, make_scheduler
from .test_costs import PERFORMANCE


def step(scheduler: Scheduler) -> StepBatch | None:
    batch = scheduler.schedule()
    if batch is not None:
        scheduler.complete(batch.step_id, [5] * len(batch.logit_rows))
    return batch


def waiting(scheduler: Scheduler) -> set[str]:
    requests = scheduler._state.requests
    return {*requests} - {sequence.request_id for sequence in scheduler._state.running.values()}


def test_who_loses_least_gives_way() -> None:
    """Long is computed for its blocks as short is, but attention to its own tokens makes each of its blocks dearer."""
    for policy, gone in ((AGENTIC, "short"), (PLAIN, "long")):
        limits = SchedulerLimits(1024, 8, 8, 1024, 64, 4096)
        scheduler = Scheduler(limits, KvManager(65, 16, 16, "t"), policy=policy, costs=StepCosts([PERFORMANCE], (), 1024))
        for name, length in (("first", 126), ("short", 200), ("long", 600)):
            scheduler.submit(make_request(name, [ord(name[0])] * length, 500))
        while not scheduler.stats().preemptions:
            step(scheduler)
        assert waiting(scheduler) == {gone}


def test_growth_of_worse_ranks_never_preempts_better_ones() -> None:
    scheduler, _ = make_scheduler(blocks=6)
    scheduler.submit(make_request("a", [1] * 7, 20))
    scheduler.submit(make_request("b", [2] * 8, 20))
    while not scheduler.stats().preemptions:
        step(scheduler)
    assert waiting(scheduler) == {"b"}


arrivals = st.lists(st.tuples(st.floats(0, 20), st.integers(8, 40), st.integers(0, 3)), min_size=10, max_size=25)


@given(arrivals, st.sampled_from([1e-5, 1e-4]))
@settings(max_examples=6, deadline=None, derandomize=True)
def test_preemption_for_better_priority_costs_no_more_than_its_budget(coming: list[tuple[float, int, int]], share: float) -> None:
    """What is lost is computed work, at most a whole context at a time."""
    scheduler, _ = make_scheduler(64, max_sequences=2, policy=Policy(preemption_budget=share, aging_seconds=1000))
    now, largest = 0.0, 48 * NOMINAL_ROW_SECONDS
    for number, (after, length, priority) in enumerate(coming):
        now += after
        scheduler.tick(now)
        scheduler.submit(make_request(str(number), [number] * length, 8, priority=3 - priority))
        for _ in range(2):
            step(scheduler)
        lost = sum(sequence.computed for sequence in scheduler._state.requests.values() if sequence.preempted_in_round >= 0)
        assert lost * NOMINAL_ROW_SECONDS <= share * (now + 60) + largest + 1e-9
    scheduler.check_integrity()


def test_a_budget_that_is_spent_comes_back_with_time() -> None:
    scheduler, _ = make_scheduler(64, max_sequences=1, policy=Policy(preemption_budget=1e-5, aging_seconds=1000))
    now = 0.0
    scheduler.tick(now)
    for name, priority in (("low", 2), ("middle", 1), ("high", 0)):
        scheduler.submit(make_request(name, [priority] * 30, 8, priority=priority))
        step(scheduler)
        step(scheduler)
    assert scheduler.stats().preemptions == 1 and waiting(scheduler) == {"low", "high"}
    scheduler.tick(1000.0)
    step(scheduler)
    assert scheduler.stats().preemptions == 2 and waiting(scheduler) == {"low", "middle"}


def test_what_is_sooner_computed_than_copied_is_computed() -> None:
    for rate, hits in ((1e9, 448), (1e3, 0)):
        kv = KvManager(36, 16, 16, "t", host_blocks=64, bytes_per_block=16000)
        costs = StepCosts([PERFORMANCE], (), 512, rate)
        scheduler = Scheduler(SchedulerLimits(512, 8, 8, 512, 64, 1024), kv, costs=costs)
        for name in ("one", "other", "one again"):
            scheduler.submit(make_request(name, [ord(name[1])] * 450 if name != "other" else [3] * 560, 4))
            while scheduler.has_work:
                step(scheduler)
        for _ in range(40):
            scheduler.submit(make_request("x", [1], 1))
            step(scheduler)
        assert scheduler.stats().prefix_hits == hits, rate
        assert np.isfinite(scheduler.stats().kv_usage)
