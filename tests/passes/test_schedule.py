"""Scheduler limits, buckets and workloads from a traffic profile."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenspeed.passes.schedule import TrafficProfile, bucket_sizes, schedule, workloads


@given(st.integers(2, 200_000), st.integers(1, 1024), st.integers(1, 65536))
def test_some_bucket_holds_every_step(max_context: int, max_sequences: int, prefill_chunk: int) -> None:
    limits = schedule(TrafficProfile(), max_context, max_sequences, prefill_chunk)
    assert limits.prefill_chunk == min(prefill_chunk, max_context)
    assert limits.max_rows == limits.prefill_chunk + max_sequences
    sizes = bucket_sizes(limits)
    rows = [size.rows for size in sizes]
    assert rows == sorted(set(rows)) and rows[0] == 1 and rows[-1] == limits.max_rows
    assert limits.max_decode_rows in rows
    assert all(size.logit_rows == min(size.rows, max_sequences) for size in sizes)
    assert len(sizes) <= limits.max_rows.bit_length() + 2


def test_small_example() -> None:
    limits = schedule(TrafficProfile(), 4096, 16, 100)
    assert [(size.rows, size.logit_rows) for size in bucket_sizes(limits)] == [
        (1, 1), (2, 2), (4, 4), (8, 8), (16, 16), (32, 16), (64, 16), (116, 16),
    ]  # fmt: skip


@given(
    st.builds(
        TrafficProfile,
        prompt_tokens=st.floats(1, 1e6),
        cached_fraction=st.floats(0, 1),
        output_tokens=st.floats(1, 1e5),
        concurrency=st.floats(0.1, 1e4),
    )
)
def test_workloads_are_shares_of_all_steps(traffic: TrafficProfile) -> None:
    limits = schedule(traffic, 8192, 16, 512)
    decode, prefill = workloads(limits)
    assert decode.share + prefill.share == pytest.approx(1) and decode.share > 0 and prefill.share > 0
    assert 1 <= decode.rows == decode.logit_rows <= 16
    assert (prefill.rows, prefill.logit_rows) == (512, 1)


def test_longer_answers_make_decoding_matter_more() -> None:
    shares = [workloads(schedule(TrafficProfile(output_tokens=n), 8192, 16, 512))[0].share for n in (8, 128, 4096)]
    assert shares == sorted(shares) and shares[0] < shares[-1]


def test_decode_rows_within_the_chunk_where_it_is_large() -> None:
    large = schedule(TrafficProfile(), 8192, 64, 2048, whole_tiles=True)
    small = schedule(TrafficProfile(), 8192, 64, 128, whole_tiles=True)
    assert (large.max_rows, large.prefill_chunk) == (2048, 2048)
    assert (small.max_rows, small.prefill_chunk) == (192, 128)
