"""One step in flight: pending tokens, late stops, and what must wait for a launched step."""

from __future__ import annotations

import numpy as np
import pytest
from tokenspeed.runtime.scheduling.errors import SchedulerMisuse
from tokenspeed.runtime.scheduling.kv_integrity import block_states
from tokenspeed.runtime.scheduling.policy import PLAIN
from tokenspeed.runtime.scheduling.request import Outcome
from tokenspeed.runtime.scheduling.scheduler import Scheduler
from tokenspeed.runtime.scheduling.step import StepBatch

from .shadow import make_request, make_scheduler


def launch(scheduler: Scheduler) -> StepBatch:
    batch = scheduler.schedule()
    assert batch is not None
    return batch


def test_a_step_scheduled_ahead_feeds_on_the_slots_last_token():
    scheduler, _ = make_scheduler()
    scheduler.submit(make_request("a", [1, 2, 3], 10))
    launch(scheduler)
    ahead = launch(scheduler)
    assert (ahead.token_ids.tolist(), ahead.positions.tolist(), ahead.context_lengths.tolist()) == ([-1], [3], [4])
    assert scheduler.complete(0, {"a": 7}) == [Outcome("a", 7)]
    assert launch(scheduler).token_ids.tolist() == [-1]
    scheduler.complete(1, [8])
    scheduler.complete(2, np.array([9], dtype=np.int32))
    alternating = launch(scheduler)
    assert (alternating.token_ids.tolist(), alternating.positions.tolist()) == ([9], [5])


def test_a_late_stop_discards_exactly_one_token_and_holds_its_blocks():
    scheduler, kv = make_scheduler(max_sequences=1)
    scheduler.submit(make_request("a", [1, 2, 3], 10, stop_tokens=frozenset({7})))
    scheduler.submit(make_request("b", [4, 4], 10))
    launch(scheduler)
    launch(scheduler)
    assert scheduler.complete(0, [7]) == [Outcome("a", 7, "stop", 7)]
    assert kv.available == kv.blocks - 1 and kv.retiring
    scheduler.check_integrity()
    assert scheduler.schedule() is None, "the slot is still named by step 1"
    assert scheduler.complete(1, [8]) == []
    assert kv.available == kv.blocks
    assert scheduler.stats().discarded_tokens == 1 and scheduler.stats().generation_tokens == 1
    assert launch(scheduler).request_ids == ("b",)


def test_an_end_by_length_is_foreseen():
    scheduler, _ = make_scheduler()
    scheduler.submit(make_request("a", [1, 2, 3], 2))
    launch(scheduler)
    launch(scheduler)
    scheduler.complete(0, [7])
    assert scheduler.schedule() is None
    assert scheduler.complete(1, [8]) == [Outcome("a", 8, "length")]
    assert scheduler.stats().discarded_tokens == 0 and not scheduler.has_work


def test_a_stop_token_at_the_limit_is_a_stop():
    scheduler, _ = make_scheduler()
    scheduler.submit(make_request("a", [1], 1, stop_tokens=frozenset({7})))
    launch(scheduler)
    assert scheduler.complete(0, [7]) == [Outcome("a", 7, "stop", 7)]


def test_the_token_of_a_sequence_preempted_in_flight_is_kept():
    scheduler, _ = make_scheduler(blocks=4, max_sequences=2)
    scheduler.submit(make_request("a", [1] * 7, 9))
    scheduler.submit(make_request("b", [2] * 3, 9))
    outputs: dict[str, list[int]] = {"a": [], "b": []}
    pending = launch(scheduler)
    token = 10
    for _ in range(40):
        ahead = scheduler.schedule()
        sampled = {name: token + index for index, name in enumerate(pending.logit_request_ids)} if pending else {}
        if pending:
            for outcome in scheduler.complete(pending.step_id, sampled):
                assert outcome.token is not None
                outputs[outcome.request_id].append(outcome.token)
                assert outcome.token == sampled[outcome.request_id]
        scheduler.check_integrity()
        pending, token = ahead, token + 10
        if not scheduler.has_work:
            break
    stats = scheduler.stats()
    assert stats.preemptions > 0 and stats.discarded_tokens == 0
    assert (len(outputs["a"]), len(outputs["b"])) == (9, 9)


def test_preempted_blocks_are_not_reused_while_a_step_is_in_flight():
    scheduler, kv = make_scheduler(blocks=4, max_sequences=1)
    scheduler.submit(make_request("low", [1] * 8, priority=1))
    first = launch(scheduler)
    scheduler.submit(make_request("high", [2] * 16, priority=0))
    assert scheduler.schedule() is None
    assert scheduler.stats().preemptions == 1 and kv.retiring
    scheduler.check_integrity()
    assert scheduler.complete(first.step_id, [6]) == [Outcome("low", 6)]
    assert launch(scheduler).request_ids == ("high",)


def test_a_round_that_only_preempts_leaves_nothing_stuck():
    scheduler, _ = make_scheduler(blocks=4, block_tokens=2, identity_tokens=2, max_rows=4, max_sequences=2, policy=PLAIN)
    scheduler.submit(make_request("a", [1, 1, 1], 4, priority=1))
    launch(scheduler)
    scheduler.submit(make_request("b", [1, 1, 2], 3, priority=1))
    scheduler.complete(0, [5])
    launch(scheduler)
    scheduler.submit(make_request("c", [1, 1], 2, priority=0))
    assert scheduler.schedule() is None and scheduler.stats().preemptions == 2
    assert scheduler.schedule() is None, "their tokens are still to come"
    assert {outcome.request_id for outcome in scheduler.complete(1, [5, 5])} == {"a", "b"}
    scheduler.abort("c")
    assert launch(scheduler).admissions[0].output.tolist() == [5, 5]


def test_the_preempted_returns_only_after_its_token():
    scheduler, _ = make_scheduler(blocks=4, max_sequences=2)
    scheduler.submit(make_request("a", [1] * 5, priority=1))
    launch(scheduler)
    scheduler.submit(make_request("large", [2] * 16, priority=0))
    assert scheduler.schedule() is None and scheduler.stats().preemptions == 1
    scheduler.abort("large")
    assert scheduler.schedule() is None, "a slot and blocks are free, but its next token is not known"
    assert scheduler.complete(0, [7]) == [Outcome("a", 7)]
    assert launch(scheduler).admissions[0].output.tolist() == [7]


def test_abort_waiting_running_in_flight_and_unknown():
    scheduler, kv = make_scheduler(max_sequences=1)
    scheduler.submit(make_request("runs", [1] * 5))
    scheduler.submit(make_request("waits", [1] * 5))
    launch(scheduler)
    launch(scheduler)
    assert scheduler.abort("waits") == Outcome("waits", None, "abort")
    assert scheduler.abort("runs") == Outcome("runs", None, "abort")
    assert scheduler.abort("runs") is None and scheduler.abort("never") is None
    scheduler.submit(make_request("runs", [2]))  # the id is free again; old rows must not reach it
    assert scheduler.complete(0, [5]) == [] and kv.available == kv.blocks - 2
    assert scheduler.complete(1, [5]) == [] and kv.available == kv.blocks
    scheduler.check_integrity()
    assert launch(scheduler).admissions[0].prompt.tolist() == [2]


def test_a_failed_step_ends_its_requests_and_no_others():
    scheduler, kv = make_scheduler(max_rows=8, prefill_chunk=8)
    scheduler.submit(make_request("a", [1] * 8))
    scheduler.submit(make_request("b", [2] * 8))
    launch(scheduler)
    ahead = launch(scheduler)
    assert ahead.request_ids == ("a", "b")
    assert scheduler.fail(0) == [Outcome("a", None, "error")]
    assert kv.available == kv.blocks - 5
    scheduler.check_integrity()
    assert scheduler.complete(1, [5]) == []
    assert kv.available == kv.blocks - 2
    assert len(scheduler.complete(launch(scheduler).step_id, [5])) == 1
    scheduler.submit(make_request("again", [1] * 9, 1))
    batch = launch(scheduler)
    assert batch.request_ids == ("b", "again") and batch.positions[1] == 0, "nothing of a failed step is in the cache"


def test_failing_both_steps_in_flight():
    scheduler, kv = make_scheduler()
    scheduler.submit(make_request("a", [1] * 8))
    launch(scheduler)
    launch(scheduler)
    assert scheduler.fail(0) == [Outcome("a", None, "error")]
    assert scheduler.fail(1) == []
    assert not scheduler.has_work and kv.available == kv.blocks and set(block_states(kv).values()) == {"free"}


def test_calls_out_of_order_are_refused_and_change_nothing():
    scheduler, _ = make_scheduler()
    with pytest.raises(SchedulerMisuse, match="no step"):
        scheduler.complete(0, [])
    scheduler.submit(make_request("a", [1]))
    launch(scheduler)
    launch(scheduler)
    with pytest.raises(SchedulerMisuse, match="2 are in flight"):
        scheduler.schedule()
    for call in (lambda: scheduler.complete(1, [5]), lambda: scheduler.fail(1), lambda: scheduler.complete(2, [5])):
        with pytest.raises(SchedulerMisuse, match="oldest"):
            call()
    for tokens in ([], [1, 2], [-1], {"b": 1}):
        with pytest.raises(SchedulerMisuse):
            scheduler.complete(0, tokens)
    scheduler.check_integrity()
    assert scheduler.complete(0, {"a": 5}) == [Outcome("a", 5)]


def test_nobody_changes_the_scheduler_through_a_batch():
    """What a batch shares with it cannot be written to."""
    scheduler, _ = make_scheduler()
    scheduler.submit(make_request("a", [1] * 5, 10))
    for step in range(6):
        batch = launch(scheduler)
        assert batch.token_ids.tolist() == ([1] * 5 if step == 0 else [6 + step])
        for name in StepBatch.__struct_fields__:
            array = getattr(batch, name)
            if isinstance(array, np.ndarray) and array.flags.writeable:
                array.fill(-99)
        for admission in batch.admissions:
            admission.prompt.fill(-99)
        scheduler.complete(step, [7 + step])
        scheduler.check_integrity()
