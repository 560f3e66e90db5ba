"""Predictions as the scheduler asks for them, and steps composed by them."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenspeed.plans.perf_model import StepWork, chunk_work, step_seconds
from tokenspeed.plans.schema import CostRow, Rate
from tokenspeed.runtime.scheduling.composing import StepTime
from tokenspeed.runtime.scheduling.costs import StepCosts, work_of
from tokenspeed.runtime.scheduling.kv import KvManager
from tokenspeed.runtime.scheduling.policy import AGENTIC, Policy
from tokenspeed.runtime.scheduling.request import Request, SchedulerLimits
from tokenspeed.runtime.scheduling.scheduler import Scheduler
from tokenspeed.runtime.scheduling.step import StepBatch
from tokenspeed.tests.plans.sample_plan import sample_manifest

from .shadow import make_request

MANIFEST = sample_manifest()


def rate(value: float) -> Rate:
    return msgspec.structs.replace(MANIFEST.performance.rates["compute"], value=value)


def row(rows: int) -> CostRow:
    return msgspec.structs.replace(
        MANIFEST.performance.step_costs[0], rows=rows, flops=rows * 1e6, weight_bytes=20e6, activation_bytes=0, instructions=0
    )


PERFORMANCE = msgspec.structs.replace(
    MANIFEST.performance,
    rates={"compute": rate(1e9), "bandwidth": rate(1e9), "dispatch": rate(0)},
    step_costs=(row(1), row(16), row(64), row(256)),
    attention_flops_per_token_pair=100.0,
    kv_bytes_per_token=1000.0,
)
"""A row takes 1 ms and the weights 20 ms, a token of context 1 us, a pair 0.1 us."""


def test_predictions_are_the_evaluators() -> None:
    costs = StepCosts([PERFORMANCE], (), 64)
    work = StepWork(30, 100, 200, 300)
    assert costs.step_seconds(work) == step_seconds(PERFORMANCE, work)
    assert costs.prefill_seconds(100, 20) == pytest.approx(
        costs.step_seconds(chunk_work(20, 64)) + costs.step_seconds(chunk_work(84, 16))
    )
    padded = StepCosts([PERFORMANCE], (1, 16, 64, 256), 64)
    assert padded.step_seconds(StepWork(17)) == costs.step_seconds(StepWork(64)) and padded.padded_rows(300) == 300


def test_what_a_plan_says() -> None:
    costs = StepCosts.from_manifest(MANIFEST)
    assert costs.step_seconds(StepWork(1, 1)) > 0 and costs.row_seconds > 0
    assert costs.copy_seconds(1e9) == float("inf")
    linked = msgspec.structs.replace(MANIFEST.performance, rates=MANIFEST.performance.rates | {"host_link": rate(5e9)})
    assert StepCosts.from_manifest(msgspec.structs.replace(MANIFEST, performance=linked)).copy_seconds(1e9) == pytest.approx(0.2)


def scheduler_of(policy: Policy, buckets: tuple[int, ...] = ()) -> Scheduler:
    limits = SchedulerLimits(256, 16, 16, 128, 64, 4096)
    return Scheduler(limits, KvManager(1024, 16, 16, "t"), policy=policy, costs=StepCosts([PERFORMANCE], buckets, 128, 0.0, 0.05))


def predicted(batch: StepBatch, buckets: tuple[int, ...] = ()) -> float:
    work = work_of(batch.decode_rows, batch.positions, batch.context_lengths)
    return StepCosts([PERFORMANCE], buckets, 128).step_seconds(work)


requests = st.lists(
    st.tuples(st.integers(1, 600), st.integers(1, 12), st.sampled_from([None, None, 0.001, 0.03, 0.2]), st.integers(0, 4)),
    min_size=2,
    max_size=14,
)


@given(requests, st.sampled_from([(), (1, 16, 64, 256)]), st.sampled_from([0.1, 0.5, 0.8]))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_prompts_stall_decoding_no_longer_than_they_may(
    wanted: list[tuple[int, int, float | None, int]], buckets: tuple[int, ...], share: float
) -> None:
    scheduler = scheduler_of(Policy(prefill_share=share), buckets)
    targets: dict[str, float] = {}

    def step() -> None:
        batch = scheduler.schedule()
        if batch is None:
            return
        scheduler.complete(batch.step_id, np.full(len(batch.logit_rows), 5, np.int32))
        decodes, prompts = batch.decode_rows, batch.rows - batch.decode_rows
        if decodes and prompts > 1:
            context = float(batch.context_lengths[:decodes].sum())
            costs, work = StepCosts([PERFORMANCE], buckets, 128), StepWork(decodes, context)
            target = min(targets[name] for name in batch.request_ids[:decodes])
            end, rows = int(batch.context_lengths[decodes]), int(np.diff(batch.sequence_starts)[decodes])
            one = costs.step_seconds(work.with_chunk(end - rows, 1))
            limit = max(target, costs.step_seconds(work) / (1 - share), 1.1 * one)
            assert predicted(batch, buckets) <= limit + 1e-6 * decodes + 1e-9

    for number, (length, outputs, target, steps) in enumerate(wanted):
        name = str(number)
        tokens = np.full(length, number + 1, np.int32)
        scheduler.submit(Request(name, tokens, outputs, inter_token_seconds=target))
        targets[name] = 0.05 if target is None else target
        for _ in range(steps):
            step()
    while scheduler.has_work:
        step()


def test_a_step_is_filled_to_its_target_with_several_prompts() -> None:
    scheduler = scheduler_of(AGENTIC)
    scheduler.submit(make_request("decodes", [1], 100))
    for _ in range(3):
        batch = scheduler.schedule()
        assert batch is not None
        scheduler.complete(batch.step_id, [5] * len(batch.logit_rows))
    for number in range(5):
        scheduler.submit(make_request(f"p{number}", [number + 2] * 20, 2))
    batch = scheduler.schedule()
    assert batch is not None and np.diff(batch.sequence_starts).tolist() == [1, 20, 20, 8]
    assert 0.0485 < predicted(batch) <= 0.05
    plain = scheduler_of(Policy(chunk_by_cost=False))
    plain.submit(make_request("decodes", [1], 100))
    batch = plain.schedule()
    assert batch is not None
    plain.complete(batch.step_id, [5])
    plain.submit(make_request("p", [2] * 300, 2))
    batch = plain.schedule()
    assert batch is not None and batch.rows == 129


def test_where_there_is_no_time_a_bucket_is_filled_all_the_same() -> None:
    padded, exact = (StepCosts([PERFORMANCE], buckets, 128) for buckets in ((1, 16, 64, 256), ()))
    assert StepTime(padded, StepWork(1, 100), 0.001, 0.0).rows_within(1000, 300) == 15
    deep = StepTime(exact, StepWork(30, 100), 0.001, 0.0)
    assert 1 < deep.rows_within(1000, 300) < 5
    deep.add(1000, 5)
    assert deep.rows_within(1000, 300) == 0


def test_rows_go_to_the_edge_of_a_bucket() -> None:
    """Rows that a step is padded with take no time."""
    scheduler = scheduler_of(Policy(inter_token_seconds=0.07), (1, 16, 64, 256))
    scheduler.submit(make_request("decodes", [1], 100))
    batch = scheduler.schedule()
    assert batch is not None
    scheduler.complete(batch.step_id, [5])
    scheduler.submit(make_request("p", [2] * 300, 2))
    batch = scheduler.schedule()
    assert batch is not None and batch.rows == 64
