from __future__ import annotations

import numpy as np
import pytest
from tokenspeed.runtime.scheduling.scheduler import Scheduler
from tokenspeed.runtime.scheduling.step import StepBatch

from .shadow import make_request, make_scheduler


def step(scheduler: Scheduler, token: int = 5) -> StepBatch:
    """Schedule and complete one step, alternating; every logit row samples `token`."""
    batch = scheduler.schedule()
    assert batch is not None
    scheduler.complete(batch.step_id, [token] * len(batch.logit_rows))
    scheduler.check_integrity()
    return batch


def rows_of(batch: StepBatch) -> dict[str, int]:
    return dict(zip(batch.request_ids, np.diff(batch.sequence_starts).tolist(), strict=True))


def test_decode_rows_come_first_then_chunks_fill_the_step():
    scheduler, _ = make_scheduler(max_rows=12, prefill_chunk=8)
    scheduler.submit(make_request("a", [1] * 4))
    assert rows_of(step(scheduler)) == {"a": 4}
    scheduler.submit(make_request("b", [2] * 20))
    scheduler.submit(make_request("c", [3] * 5))
    batch = step(scheduler)
    assert rows_of(batch) == {"a": 1, "b": 8, "c": 3}
    assert (batch.decode_rows, batch.logit_request_ids, batch.logit_rows.tolist()) == (1, ("a",), [0])
    assert [(admission.request_id, admission.slot) for admission in batch.admissions] == [("b", 1), ("c", 2)]
    batch = step(scheduler)
    assert rows_of(batch) == {"a": 1, "b": 8, "c": 2}
    assert batch.logit_request_ids == ("a", "c")
    batch = step(scheduler)
    assert rows_of(batch) == {"a": 1, "c": 1, "b": 4}
    assert batch.decode_rows == 2


def test_a_chunk_is_limited_and_a_single_prompt_is_cut():
    scheduler, _ = make_scheduler(max_rows=32, prefill_chunk=6)
    scheduler.submit(make_request("a", [1] * 14))
    assert [rows_of(step(scheduler)) for _ in range(3)] == [{"a": 6}, {"a": 6}, {"a": 2}]
    assert step(scheduler).decode_rows == 1


def test_admission_is_by_priority_then_arrival():
    scheduler, _ = make_scheduler(max_rows=4, prefill_chunk=4, max_sequences=3)
    for name, priority in (("late", 5), ("first", 1), ("second", 1), ("urgent", -3)):
        scheduler.submit(make_request(name, [1] * 4, 1, priority=priority))
    assert [step(scheduler).request_ids for _ in range(4)] == [("urgent",), ("first",), ("second",), ("late",)]


def test_a_better_ranked_newcomer_prefills_before_a_running_prefill():
    scheduler, _ = make_scheduler(max_rows=4, prefill_chunk=4)
    scheduler.submit(make_request("long", [1] * 12, priority=1))
    step(scheduler)
    scheduler.submit(make_request("urgent", [2] * 6, priority=0))
    assert rows_of(step(scheduler)) == {"urgent": 4}
    assert rows_of(step(scheduler)) == {"urgent": 2, "long": 2}


def test_nobody_overtakes_a_waiting_request_that_does_not_fit():
    scheduler, kv = make_scheduler(blocks=6)
    scheduler.submit(make_request("runs", [1] * 12))
    step(scheduler)
    scheduler.submit(make_request("large", [2] * 12))
    scheduler.submit(make_request("small", [3]))
    assert step(scheduler).request_ids == ("runs",)
    scheduler.abort("runs")
    assert step(scheduler).request_ids == ("large", "small")
    assert kv.available == 2


def test_admission_leaves_a_block_for_each_running_sequence():
    scheduler, _ = make_scheduler(blocks=4)
    scheduler.submit(make_request("a", [1] * 8))
    step(scheduler)
    scheduler.submit(make_request("b", [2] * 8))
    assert step(scheduler).request_ids == ("a",)
    scheduler.abort("b")
    scheduler.submit(make_request("c", [3] * 4, 1))
    assert scheduler.stats().preemptions == 0


def test_decodes_of_a_class_take_turns_and_better_classes_do_not_wait():
    scheduler, _ = make_scheduler(max_rows=32, max_decode_rows=2)
    for name, priority in (("a", 0), ("b", 1), ("c", 1), ("d", 1)):
        scheduler.submit(make_request(name, [1], 50, priority=priority))
    step(scheduler)
    seen = [step(scheduler).request_ids for _ in range(6)]
    assert all(len(names) == 2 and names[0] == "a" for names in seen)
    assert sorted(names[1] for names in seen) == ["b", "b", "c", "c", "d", "d"]


def test_a_decode_without_a_block_preempts_the_worst_rank():
    scheduler, kv = make_scheduler(blocks=6)
    scheduler.submit(make_request("a", [1] * 7, 20))
    scheduler.submit(make_request("b", [2] * 8, 20))
    step(scheduler)
    batches = []
    while not scheduler.stats().preemptions:
        batches.append(step(scheduler))
    assert batches[-1].request_ids == ("a",)
    stats = scheduler.stats()
    assert (stats.running, stats.waiting, len(batches), kv.available) == (1, 1, 5, 3)


def test_the_preempted_keeps_rank_and_output_and_counts_what_it_recomputes():
    scheduler, _ = make_scheduler(blocks=6)
    scheduler.submit(make_request("a", [1] * 7, 20))
    scheduler.submit(make_request("b", [2] * 8, 20))
    while not scheduler.stats().preemptions:
        step(scheduler)
    scheduler.submit(make_request("c", [3], 20))
    scheduler.abort("a")
    batch = step(scheduler)
    assert batch.request_ids == ("b", "c")
    admission = batch.admissions[0]
    outputs = len(admission.output)
    assert admission.prompt.tolist() == [2] * 8 and admission.output.tolist() == [5] * outputs and outputs > 0
    computed_before, hits = 8 + outputs - 1, int(batch.positions[0])
    assert hits == (8 + outputs - 1) // 4 * 4
    assert scheduler.stats().recomputed_tokens == computed_before - hits
    assert scheduler.stats().prefix_queries == 7 + 8 + 1


def test_better_priority_preempts_for_a_slot():
    scheduler, _ = make_scheduler(max_sequences=2)
    scheduler.submit(make_request("low", [1] * 3, priority=2))
    scheduler.submit(make_request("lower", [1] * 3, priority=3))
    step(scheduler)
    scheduler.submit(make_request("equal", [2] * 3, priority=3))
    assert step(scheduler).request_ids == ("low", "lower")
    scheduler.submit(make_request("high", [2] * 3, priority=0))
    assert step(scheduler).request_ids == ("low", "high")
    scheduler.submit(make_request("higher", [2] * 3, priority=-1))
    assert set(step(scheduler).request_ids) == {"high", "higher"}
    assert scheduler.stats().preemptions == 2


def test_better_priority_preempts_for_blocks_only_if_that_helps():
    scheduler, _ = make_scheduler(blocks=8)
    scheduler.submit(make_request("keeps", [1] * 16, priority=0))
    scheduler.submit(make_request("gives", [2] * 8, priority=5))
    step(scheduler)
    scheduler.submit(make_request("huge", [3] * 24, priority=1))
    assert step(scheduler).request_ids == ("keeps", "gives")
    assert scheduler.stats().preemptions == 0
    scheduler.abort("huge")
    scheduler.submit(make_request("fits", [4] * 8, priority=1))
    assert step(scheduler).request_ids == ("keeps", "fits")
    assert scheduler.stats().preemptions == 1


@pytest.mark.parametrize("overlap", [False, True])
def test_min_tokens_holds_stops_back(overlap: bool):
    scheduler, _ = make_scheduler()
    scheduler.submit(make_request("a", [1], 10, stop_tokens=frozenset({5}), min_tokens=2))
    reasons = []
    pending = scheduler.schedule() if overlap else None
    while scheduler.has_work:
        batch = scheduler.schedule()
        oldest = pending if overlap else batch
        assert oldest is not None
        reasons += [o.finish_reason for o in scheduler.complete(oldest.step_id, [5] * len(oldest.logit_rows))]
        pending = batch
    assert reasons == [None, None, "stop"]


def test_prefix_hits_are_taken_at_admission_and_a_full_hit_is_cut():
    scheduler, _ = make_scheduler()
    prompt = list(range(1, 13))
    scheduler.submit(make_request("a", prompt, 1))
    step(scheduler)
    scheduler.submit(make_request("same", prompt, 1))
    batch = scheduler.schedule()
    assert batch is not None and batch.positions.tolist() == [8, 9, 10, 11]
    (outcome,) = scheduler.complete(batch.step_id, [5])
    assert outcome.cached_tokens == 8 and outcome.finish_reason == "length"
    scheduler.submit(make_request("longer", [*prompt, 13], 1))
    batch = step(scheduler)
    assert batch.positions.tolist() == [12]
    scheduler.submit(make_request("salted", prompt, 1, salt="tenant"))
    assert step(scheduler).rows == 12
    stats = scheduler.stats()
    assert (stats.prefix_queries, stats.prefix_hits, stats.prompt_tokens) == (12 + 12 + 13 + 12, 8 + 12, 49)


def test_generated_tokens_are_cached_for_the_next_turn():
    scheduler, _ = make_scheduler()
    scheduler.submit(make_request("turn1", [1, 2, 3], 10))
    while scheduler.has_work:
        step(scheduler)
    scheduler.submit(make_request("turn2", [1, 2, 3] + [5] * 10 + [9, 9], 1))
    assert step(scheduler).positions[0] == 12
