from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tokenspeed.plans.errors import PlanError, TokenspeedError
from tokenspeed.plans.schema import Schedule
from tokenspeed.runtime.scheduling.errors import DuplicateRequest, InvalidRequest, PromptTooLong, QueueFull
from tokenspeed.runtime.scheduling.request import Request, SchedulerLimits
from tokenspeed.runtime.scheduling.waiting import WaitingQueue

from .shadow import ShadowDevice, make_request, make_scheduler, run_to_end


def untyped_request(tokens: Any) -> Request:
    """What a caller without a type checker could send."""
    return Request("a", tokens, 1)


def test_limits_come_from_the_plan():
    schedule = Schedule(max_rows=8, max_decode_rows=4, max_sequences=5, prefill_chunk=6, max_waiting=7, traffic={"rate": 1.0})
    assert SchedulerLimits.from_plan(schedule, 99) == SchedulerLimits(8, 4, 5, 6, 7, 99)


@pytest.mark.parametrize("values", [(0, 1, 1, 1, 1, 1), (4, 5, 1, 1, 1, 1), (1, 1, 1, 1, 1, 2**31), (1, 1, 0, 1, 1, 1)])
def test_unusable_limits_are_refused(values: tuple[int, ...]):
    with pytest.raises(PlanError, match="schedule limit"):
        SchedulerLimits(*values)


@pytest.mark.parametrize(
    ("request_", "where"),
    [
        (make_request("a", []), "tokens"),
        (make_request("a", [1, -1]), "tokens"),
        (Request("a", np.array([[1]], dtype=np.int32), 1), "tokens"),
        (untyped_request(np.array([1.5])), "tokens"),
        (untyped_request(np.array([2**31], dtype=np.int64)), "tokens"),
        (make_request("a", [1], 0), "max_tokens"),
        (make_request("a", [1], min_tokens=-1), "min_tokens"),
        (make_request("a", [1], priority=2**40), "priority"),
    ],
)
def test_what_is_no_request_is_refused(request_: Request, where: str):
    scheduler, _ = make_scheduler()
    with pytest.raises(InvalidRequest) as caught:
        scheduler.submit(request_)
    assert caught.value.where == where and caught.value.fix and isinstance(caught.value, TokenspeedError)
    assert not scheduler.has_work


def test_a_full_queue_refuses():
    scheduler, _ = make_scheduler(max_waiting=2)
    scheduler.submit(make_request("a", [1]))
    scheduler.submit(make_request("b", [1]))
    with pytest.raises(QueueFull) as caught:
        scheduler.submit(make_request("c", [1]))
    assert (caught.value.expected, caught.value.got) == ("fewer than 2 requests waiting", "2")
    scheduler.abort("a")
    scheduler.submit(make_request("c", [1]))
    assert scheduler.stats().waiting == 2


def test_prompts_that_cannot_fit_are_refused():
    scheduler, _ = make_scheduler(max_context=16)
    with pytest.raises(PromptTooLong) as caught:
        scheduler.submit(make_request("a", [1] * 16))
    assert (caught.value.limit, caught.value.length, caught.value.expected) == (15, 16, "at most 15 tokens")
    scheduler.submit(make_request("a", [1] * 15))
    scheduler, _ = make_scheduler(blocks=2, max_context=64)
    with pytest.raises(PromptTooLong, match="KV pool") as caught:
        scheduler.submit(make_request("a", [1] * 9))
    assert (caught.value.limit, caught.value.length) == (8, 9)


def test_an_id_is_used_once_at_a_time():
    scheduler, _ = make_scheduler()
    scheduler.submit(make_request("a", [1]))
    with pytest.raises(DuplicateRequest):
        scheduler.submit(make_request("a", [2]))
    assert scheduler.schedule() is not None
    with pytest.raises(DuplicateRequest):
        scheduler.submit(make_request("a", [2]))
    scheduler.complete(0, [5])
    scheduler.abort("a")
    scheduler.submit(make_request("a", [2]))


def test_the_callers_array_is_not_kept():
    scheduler, kv = make_scheduler()
    tokens = np.array([1, 2, 3], dtype=np.int32)
    scheduler.submit(Request("a", tokens, 1))
    tokens[:] = 9
    batch = scheduler.schedule()
    assert batch is not None and batch.token_ids.tolist() == [1, 2, 3]
    assert kv.available == kv.blocks - 1


@pytest.mark.parametrize(("blocks", "max_context", "max_tokens", "outputs"), [(32, 10, 99, 5), (2, 64, 99, 4), (32, 64, 3, 3)])
def test_length_ends_by_request_context_or_pool(blocks: int, max_context: int, max_tokens: int, outputs: int):
    scheduler, kv = make_scheduler(blocks=blocks, max_context=max_context)
    device = ShadowDevice(kv, SchedulerLimits(32, 8, 8, 16, 64, max_context))
    request = make_request("a", [1] * 5, max_tokens)
    scheduler.submit(request)
    device.enter(request)
    tokens, reason = run_to_end(scheduler, device, overlap=True)["a"]
    assert (len(tokens), reason) == (outputs, "length")
    assert scheduler.stats().discarded_tokens == 0


def test_dropped_entries_do_not_pile_up_in_the_queue():
    scheduler, _ = make_scheduler(max_waiting=10)
    scheduler.submit(make_request("first", [1], priority=-1))
    for number in range(1000):
        scheduler.submit(make_request(str(number), [1]))
        scheduler.abort(str(number))
    queue: WaitingQueue = scheduler._state.waiting._ready
    assert len(queue) == 1 and len(queue._all) <= 66
    scheduler.check_integrity()
