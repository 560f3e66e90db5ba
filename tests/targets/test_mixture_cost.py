"""The busiest of the ranks that share a mixture's experts out."""

from __future__ import annotations

import pytest
from tokenspeed.targets.mixture_cost import busiest


def test_one_rank_has_every_pair() -> None:
    load = busiest(128, 128, 8, 4)
    assert load.pairs == 32 and load.experts == pytest.approx(128 * (1 - (1 - 8 / 128) ** 4))


@pytest.mark.parametrize("rows", [1, 4, 64, 4096])
@pytest.mark.parametrize("ranks", [2, 8, 64])
def test_the_busiest_has_more_than_its_share_and_no_more_than_there_is(ranks: int, rows: int) -> None:
    held, whole = 128 / ranks, busiest(128, 128, 8, rows)
    load = busiest(held, 128, 8, rows)
    assert whole.pairs / ranks < load.pairs <= min(whole.pairs, rows * held)
    assert whole.experts / ranks <= load.experts <= held


def test_many_rows_hit_all_experts_and_few_are_uneven() -> None:
    few, many = busiest(16, 128, 8, 4), busiest(16, 128, 8, 4096)
    assert many.experts == pytest.approx(16) and many.pairs < 1.3 * 4096
    assert few.pairs > 1.5 * 4
