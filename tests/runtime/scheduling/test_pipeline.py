"""Several steps in flight: of different sequences, alike in predicted time, as many as there are stages if there is enough."""

from __future__ import annotations

import numpy as np
import pytest
from tokenspeed.runtime.scheduling.errors import SchedulerMisuse
from tokenspeed.runtime.scheduling.kv import KvManager
from tokenspeed.runtime.scheduling.pipeline import Pipeline
from tokenspeed.runtime.scheduling.request import SchedulerLimits
from tokenspeed.runtime.scheduling.scheduler import Scheduler
from tokenspeed.runtime.scheduling.step import StepBatch

from .shadow import make_request


def seconds(rows: float, context: float) -> float:
    return 10.0 + rows + context / 100


def pipelined(depth: int, max_rows: int = 64, prefill_chunk: int = 32) -> Scheduler:
    limits = SchedulerLimits(max_rows, 32, 32, prefill_chunk, 64, 4096)
    return Scheduler(limits, KvManager(2048, 16, 16, "test"), Pipeline(depth, seconds))


def fill(scheduler: Scheduler, depth: int) -> list[StepBatch]:
    launched = []
    while len(launched) < depth and (batch := scheduler.schedule()) is not None:
        launched.append(batch)
    scheduler.check_integrity()
    return launched


def finish(scheduler: Scheduler, batch: StepBatch) -> None:
    scheduler.complete(batch.step_id, np.full(len(batch.logit_rows), 3, np.int32))


def decoding(scheduler: Scheduler, lengths: list[int]) -> None:
    """Bring as many sequences to decoding, with prompts of these lengths."""
    for number, length in enumerate(lengths):
        scheduler.submit(make_request(f"r{number}", [1 + number] * length, 1000))
    begun: set[str] = set()
    while len(begun) < len(lengths):
        batch = scheduler.schedule()
        assert batch is not None
        begun |= {*batch.logit_request_ids}
        finish(scheduler, batch)


@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9, 16])
def test_the_pipeline_is_full_when_there_are_enough_sequences(depth: int, count: int):
    scheduler = pipelined(depth)
    decoding(scheduler, [5] * count)
    running = fill(scheduler, depth)
    for _ in range(6 * depth):
        assert len(running) == min(depth, count)
        named = [name for batch in running for name in batch.request_ids]
        assert len({*named}) == len(named) >= count - 1, "no sequence is in two steps, and all but one run"
        assert all((batch.token_ids >= 0).all() for batch in running)
        finish(scheduler, running.pop(0))
        running += fill(scheduler, depth - len(running))
    sizes = [batch.rows for batch in running]
    assert max(sizes) - min(sizes) <= 2, "contexts differ a little"


def test_groups_that_became_unequal_become_equal_again():
    scheduler = pipelined(2)
    decoding(scheduler, [5] * 12)
    first, second = fill(scheduler, 2)
    assert (first.rows, second.rows) == (6, 6)
    for name in second.request_ids[1:]:
        scheduler.abort(name)
    finish(scheduler, first)
    (third,) = fill(scheduler, 1)
    assert third.rows == 4, "of 7 that are left"
    finish(scheduler, second)
    (fourth,) = fill(scheduler, 1)
    assert fourth.rows == 3


def test_steps_are_alike_in_time_not_in_number():
    """One sequence with a long context takes as long as some with short ones."""
    scheduler = pipelined(2)
    decoding(scheduler, [1600, *[100] * 15])
    running = fill(scheduler, 2)
    for _ in range(8):
        finish(scheduler, running.pop(0))
        running += fill(scheduler, 1)
    times = [seconds(batch.rows, float(batch.context_lengths.sum())) for batch in running]
    sizes = sorted(batch.rows for batch in running)
    assert sum(sizes) >= 15 and sizes[1] - sizes[0] > 3
    assert abs(times[0] - times[1]) < 0.15 * max(times)


def test_prompts_are_shared_out():
    scheduler = pipelined(2)
    for number in range(4):
        scheduler.submit(make_request(f"r{number}", [1 + number] * 24, 10))
    first, second = fill(scheduler, 2)
    assert (first.rows, second.rows) == (48, 48)
    assert not {*first.request_ids} & {*second.request_ids}
    alone = pipelined(2)
    alone.submit(make_request("r", [1] * 24, 10))
    assert [batch.rows for batch in fill(alone, 2)] == [24], "one prompt is not cut: its parts would follow each other"


def test_a_chunk_waits_for_the_one_before_it():
    scheduler = pipelined(3)
    scheduler.submit(make_request("long", [1] * 100, 10))
    (first,) = fill(scheduler, 3)
    assert first.rows == 32 and scheduler.schedule() is None
    finish(scheduler, first)
    (second,) = fill(scheduler, 3)
    assert second.positions[0] == 32


def test_prompts_go_where_fewer_sequences_decode():
    scheduler = pipelined(2)
    decoding(scheduler, [5] * 8)
    first, second = fill(scheduler, 2)
    for name in first.request_ids[1:]:
        scheduler.abort(name)
    for number in range(8):
        scheduler.submit(make_request(f"p{number}", [40 + number] * 8, 10))
    finish(scheduler, first)
    (mixed,) = fill(scheduler, 1)
    assert mixed.decode_rows == 1 and mixed.rows > 4, "one sequence is left of that step: prompts take the place of the others"
    finish(scheduler, second)
    (other,) = fill(scheduler, 1)
    assert other.decode_rows > mixed.decode_rows and abs(other.rows - mixed.rows) <= 8


def test_no_more_steps_than_stages():
    scheduler = pipelined(3)
    decoding(scheduler, [5] * 6)
    assert scheduler.max_in_flight == 3 and len(fill(scheduler, 3)) == 3
    with pytest.raises(SchedulerMisuse, match="3 are in flight"):
        scheduler.schedule()
