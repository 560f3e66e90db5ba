"""Folding layer kinds into repeats: nothing is lost, and usual models stay small."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenspeed.compiler.frontends.repeats import RepeatedPattern, fold


def unfolded(folded: tuple[RepeatedPattern, ...]) -> list[int]:
    return [kind for found in folded for _ in range(found.count) for kind in found.pattern]


@given(st.lists(st.integers(0, 3), max_size=80))
def test_unfolding_gives_the_kinds_back(kinds: list[int]) -> None:
    folded = fold(kinds)
    assert unfolded(folded) == kinds
    position = 0
    for found in folded:
        assert found.first == position and found.count >= 1
        position += found.covered


@given(st.lists(st.integers(0, 2), min_size=1, max_size=6), st.integers(2, 12))
def test_a_pattern_repeated_is_one_repeat(pattern: list[int], count: int) -> None:
    (found,) = fold(pattern * count)
    assert len(found.pattern) <= len(pattern)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ([0] * 80, [(0, 80, (0,))]),
        ([0, 1] * 21, [(0, 21, (0, 1))]),
        (([0] * 5 + [1]) * 8, [(0, 8, (0, 0, 0, 0, 0, 1))]),
        (([0] * 5 + [1]) * 4 + [0, 0], [(0, 4, (0, 0, 0, 0, 0, 1)), (24, 2, (0,))]),
        ([0] * 3 + [1] * 58, [(0, 3, (0,)), (3, 58, (1,))]),
        ([0, 1, 2], [(0, 1, (0,)), (1, 1, (1,)), (2, 1, (2,))]),
        ([], []),
    ],
)
def test_usual_models(kinds: list[int], expected: list[tuple[int, int, tuple[int, ...]]]) -> None:
    assert [(found.first, found.count, found.pattern) for found in fold(kinds)] == expected
