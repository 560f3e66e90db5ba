"""Placements as text, and the part of a shape that they leave to a rank."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenspeed.ir.placements import Segment, Shard, disagreement, local_shape, parse_shard, with_axis

segments = st.lists(st.builds(Segment, st.integers(1, 99), st.integers(1, 4)), min_size=1, max_size=4).map(tuple)
shards = st.one_of(
    st.builds(Shard, st.integers(0, 3), st.integers(1, 8)), st.builds(Shard, st.integers(0, 3), st.just(1), segments)
)


@given(shards)
def test_a_cut_is_read_back(cut: Shard) -> None:
    assert parse_shard(str(cut)) == cut


@pytest.mark.parametrize(
    "text",
    [
        *("replicate", "partial", "shard()", "shard(1", "xshard(1)", "shard(-1)", "shard(01)", "shard(1, copies=1)"),
        *("shard(1, segments=)", "shard(1, segments=3*1)", "shard(1, copies=2, segments=3+4)"),
    ],
)
def test_what_is_no_cut(text: str) -> None:
    assert parse_shard(text) is None


def test_local_shapes() -> None:
    assert local_shape((None, 12), "replicate", 4) == local_shape((None, 12), "partial", 4) == (None, 12)
    assert local_shape((None, 12), "shard(1)", 4) == (None, 3)
    assert local_shape((None, 10), "shard(1)", 4) == (None, 3)  # the last rank's part ends in zeros
    assert local_shape((2, 8), "shard(0, copies=4)", 8) == (1, 8)
    assert local_shape((20, 8), "shard(0, segments=3+2*2)", 4) == (5, 8)
    assert local_shape((None, 12), "shard(0)", 4) == (None, 12)  # rows are a symbol


def test_segments_of_two_axes_are_those_that_a_rank_has() -> None:
    found = with_axis({"ep": "shard(0, segments=8+4*2)"}, "tp", "shard(0, segments=4+4*2)")
    assert found == {"ep": "shard(0, segments=4+4*2)", "tp": "shard(0, segments=4+4*2)"}
    assert disagreement(found) is None
    assert disagreement({"ep": "shard(0)", "tp": "shard(1, segments=2+2)"}) is None
    for wrong in ("shard(0)", "shard(0, segments=2+2)"):
        assert "dimension 0 has segments" in (disagreement({"ep": wrong, "tp": "shard(0, segments=4+4)"}) or "")
