"""A manager that does not share: equal prompts are computed anew each time, nothing is ever cached, all blocks come back."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenspeed.runtime.scheduling.kv import KvManager
from tokenspeed.runtime.scheduling.kv_integrity import block_states, check_kv
from tokenspeed.runtime.scheduling.request import Request, SchedulerLimits
from tokenspeed.runtime.scheduling.scheduler import Scheduler


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 6), st.integers(0, 1)), min_size=1, max_size=6), st.integers(6, 12))
def test_every_sequence_starts_at_position_zero(requests: list[tuple[int, int, int]], blocks: int) -> None:
    """Prompts are prefixes of one another, priorities make for preemption."""
    kv = KvManager(blocks, 4, 4, "states", share=False)
    limits = SchedulerLimits(max_rows=16, max_decode_rows=8, max_sequences=3, prefill_chunk=8, max_waiting=16, max_context=64)
    scheduler = Scheduler(limits, kv)
    for number, (length, new, priority) in enumerate(requests):
        scheduler.submit(Request(str(number), np.arange(length, dtype=np.int32), max_tokens=new, priority=priority))
    held: dict[int, int] = {}
    for _ in range(400):
        batch = scheduler.schedule()
        if batch is None:
            break
        for admission in batch.admissions:
            held[admission.slot] = 0
        for row, slot in enumerate(batch.row_slots.tolist()):
            assert batch.positions[row] == held[slot], "a row's state is the one that the row before it left"
            held[slot] += 1
        scheduler.complete(batch.step_id, np.zeros(len(batch.logit_rows), np.int32))
        check_kv(kv)
        assert "cached" not in block_states(kv).values()
    assert not scheduler.has_work and scheduler.stats().prefix_hits == 0
    assert set(block_states(kv).values()) == {"free"}
