"""The evaluator: roofline, interpolation, and predictions that hang together."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenspeed.plans.perf_model import (
    StepModel,
    StepWork,
    chunk_token_pairs,
    chunk_work,
    predict,
    prefill_chunks,
    step_cost,
    step_seconds,
)
from tokenspeed.plans.schema import Rate
from tokenspeed.tests.plans.sample_plan import sample_manifest

PERFORMANCE, SCHEDULE = sample_manifest().performance, sample_manifest().schedule
TRAFFIC = {"prompt_tokens": 64, "cached_fraction": 0.5, "output_tokens": 16, "concurrency": 4}


def test_bandwidth_bound_step() -> None:
    # 4e6 + 1e3 weight and activation bytes + 100 tokens of 512 bytes, at 1e11 B/s; ten dispatches of 1 us.
    assert step_seconds(PERFORMANCE, StepWork(1, 100)) == pytest.approx((4e6 + 1e3 + 51200) / 1e11 + 10e-6)


def test_compute_bound_step() -> None:
    assert step_seconds(PERFORMANCE, StepWork(8, 0, 1_000_000, 8)) == pytest.approx(4.008e6 / 1e11 + 256e6 / 1e12 + 10e-6)


def measured(**rates: float) -> StepModel:
    """The sample on a machine of which these rates were measured too."""
    found = {name: Rate(value=value, unit="1", source="", basis="measured") for name, value in rates.items()}
    return StepModel(msgspec.structs.replace(PERFORMANCE, rates=PERFORMANCE.rates | found))


def test_parts_follow_each_other() -> None:
    model, alone = StepModel(PERFORMANCE), StepWork(8)
    decoding, prompts = StepWork(8, 5000), StepWork(8, 0, 1_000_000, 900, 900)
    both = StepWork(8, 5000, 1_000_000, 900, 900)
    parts = [model.seconds(work) - model.seconds(alone) for work in (decoding, prompts, both)]
    assert parts[2] == pytest.approx(parts[0] + parts[1]) and min(parts) > 0
    assert model.roofline(both) < model.seconds(both)


@given(st.integers(1, 64), st.floats(0.3, 1), st.floats(1, 8))
def test_measured_products_lie_between_the_roofline_and_the_sum(rows: int, share: float, overlap: float) -> None:
    cost = step_cost(PERFORMANCE, rows)
    parts = cost.flops / (share * 1e12), (cost.weight_bytes + cost.activation_bytes) / 1e11
    found = measured(products=share, overlap=overlap).seconds(StepWork(rows)) - cost.instructions * 1e-6
    assert max(parts) * (1 - 1e-9) <= found <= sum(parts) * (1 + 1e-9)
    if overlap == 1:
        assert found == pytest.approx(sum(parts))


def test_products_of_a_bucket_may_be_slower_than_others() -> None:
    rows = tuple(msgspec.structs.replace(row, products_share=0.25) for row in PERFORMANCE.step_costs)
    slower = StepModel(msgspec.structs.replace(PERFORMANCE, step_costs=rows))
    flops = step_cost(PERFORMANCE, 64).flops
    assert slower.seconds(StepWork(64)) == pytest.approx(max(flops / 0.25e12, 4.064e6 / 1e11) + 10e-6)
    assert slower.roofline(StepWork(64)) == StepModel(PERFORMANCE).roofline(StepWork(64)), "the ceiling is without shares"


def test_attention_of_prompts_has_its_rate_and_few_rows_do_not_fill_the_machine() -> None:
    full, half = measured(attention=2e11), measured(attention=1e11)
    work = chunk_work(100_000, 8)
    assert full.seconds(work) - full.seconds(StepWork(8)) == pytest.approx(work.prompt_pairs * 256 / 2e11)
    assert half.seconds(work) - half.seconds(StepWork(8)) == pytest.approx(work.prompt_pairs * 256 / 1e11)
    rows = tuple(msgspec.structs.replace(row, attention_share=0.8, attention_rows=32.0) for row in PERFORMANCE.step_costs)
    few = StepModel(msgspec.structs.replace(PERFORMANCE, step_costs=rows))
    assert few.seconds(work) - few.seconds(StepWork(8)) == pytest.approx(100_008 * 32 * 256 / 1e12)
    assert few.pair_seconds(8) == pytest.approx(256 / 0.8e12)


@pytest.mark.parametrize(("rows", "flops"), [(0.5, 2e6), (1, 2e6), (4.5, 9e6), (8, 16e6), (15, 30e6)])
def test_interpolation_and_beyond(rows: float, flops: float) -> None:
    assert step_cost(PERFORMANCE, rows).flops == pytest.approx(flops)


def test_a_table_of_one_row_scales_what_depends_on_rows() -> None:
    one = msgspec.structs.replace(PERFORMANCE, step_costs=PERFORMANCE.step_costs[:1])
    cost = step_cost(one, 4)
    assert (cost.flops, cost.weight_bytes, cost.activation_bytes, cost.instructions) == (8e6, 4e6, 4e3, 10)


@given(st.integers(1, 500), st.integers(0, 600), st.integers(1, 64))
def test_chunks_cover_the_prompt(prompt: int, cached: int, chunk: int) -> None:
    chunks = prefill_chunks(prompt, cached, chunk)
    start = min(cached, prompt - 1)
    assert chunks[0][0] == start and sum(tokens for _, tokens in chunks) == prompt - start
    pairs = sum(chunk_token_pairs(before, tokens) for before, tokens in chunks)
    assert pairs == sum(range(start + 1, prompt + 1))


def test_one_session_alone_is_the_sum_of_its_steps() -> None:
    traffic = TRAFFIC | {"concurrency": 1}
    found = predict(PERFORMANCE, SCHEDULE, traffic)
    first = sum(step_seconds(PERFORMANCE, chunk_work(at, n)) for at, n in prefill_chunks(64, 32, 8))
    token = step_seconds(PERFORMANCE, StepWork(1, 72))
    assert found["ttft_seconds"] == pytest.approx(first)
    assert found["tpot_seconds"] == pytest.approx(token)
    assert found["request_seconds"] == pytest.approx(first + 15 * token)
    assert found["output_tokens_per_second"] == pytest.approx(16 / (first + 15 * token))


@given(st.integers(1, 4000), st.floats(0, 1), st.integers(1, 400), st.integers(1, 64))
def test_predictions_hang_together(prompt: int, cached: float, output: int, concurrency: int) -> None:
    traffic = {"prompt_tokens": prompt, "cached_fraction": cached, "output_tokens": output, "concurrency": concurrency}
    found = predict(PERFORMANCE, SCHEDULE, traffic)
    in_flight = min(concurrency, SCHEDULE.max_decode_rows)
    assert all(value > 0 for value in found.values())
    # Little's law, and a request is its first token and the others.
    assert found["requests_per_second"] * found["request_seconds"] == pytest.approx(in_flight)
    assert found["ttft_seconds"] + (output - 1) * found["tpot_seconds"] == pytest.approx(found["request_seconds"])


def test_groups_of_ranks_share_the_sessions_and_wait_for_each_other() -> None:
    alone, apart = predict(PERFORMANCE, SCHEDULE, TRAFFIC), predict(PERFORMANCE, SCHEDULE, TRAFFIC | {"concurrency": 2})
    two = predict(PERFORMANCE, SCHEDULE, TRAFFIC, groups=2)
    assert alone["output_tokens_per_second"] < two["output_tokens_per_second"] <= 2 * apart["output_tokens_per_second"]
    assert two["tpot_seconds"] >= apart["tpot_seconds"], "chunks of the other group take time here too"
    # more groups than sessions are no faster than as many
    assert predict(PERFORMANCE, SCHEDULE, TRAFFIC, groups=16) == predict(PERFORMANCE, SCHEDULE, TRAFFIC, groups=4)


def test_more_sessions_give_more_tokens_and_a_cache_an_earlier_first() -> None:
    one, four = predict(PERFORMANCE, SCHEDULE, TRAFFIC | {"concurrency": 1}), predict(PERFORMANCE, SCHEDULE, TRAFFIC)
    assert four["output_tokens_per_second"] > one["output_tokens_per_second"]
    assert four["tpot_seconds"] >= one["tpot_seconds"]
    cold = predict(PERFORMANCE, SCHEDULE, TRAFFIC | {"cached_fraction": 0})
    assert cold["ttft_seconds"] > four["ttft_seconds"]
