"""Counter-based weights: the algorithm of docs/plan-format.md, in any split."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenspeed.plans.counter_weights import counter_values, counter_weight, weight_scale

MASK = 0xFFFFFFFF


def reference(name: str, index: int, scale: float) -> np.float32:
    """The document's recipe, element by element, in plain integers."""
    digest = hashlib.sha256(name.encode()).digest()
    low, high = int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")
    x = (index & MASK) ^ low
    x = (x + high + 0x9E3779B9 * (index >> 32)) & MASK
    x ^= x >> 16
    x = x * 0x7FEB352D & MASK
    x ^= x >> 15
    x = x * 0x846CA68B & MASK
    x ^= x >> 16
    return np.float32((x >> 8) - (1 << 23)) * np.float32(np.float32(scale) * np.float32(2.0**-23))


@pytest.mark.parametrize("start", [0, 32760, (1 << 32) - 3, (7 << 32) - 1, 1 << 50])
def test_values_follow_the_document(start: int) -> None:
    values = counter_values("layers.3.qkv", start, 40, 0.37)
    assert values.dtype == np.float32
    assert values.tolist() == [reference("layers.3.qkv", start + at, 0.37) for at in range(40)]


def test_known_values_do_not_change() -> None:
    """Goldens in plans already written depend on these bits."""
    digest = hashlib.sha256(counter_values("embedding", 0, 100_000, 1.0).tobytes()).hexdigest()
    assert digest == "41b52583040ac532c232f6d978d6b27511eedb47280ee9651ebff4257a2ac1bb"


@given(st.integers(0, 70_000), st.integers(0, 70_000))
@settings(max_examples=20, deadline=None)
def test_any_split_gives_the_same_values(first: int, second: int) -> None:
    whole = counter_values("w", 5, first + second, 1.0)
    parts = [counter_values("w", 5, first, 1.0), counter_values("w", 5 + first, second, 1.0)]
    assert np.array_equal(whole, np.concatenate(parts))


def test_values_are_uniform_and_names_independent() -> None:
    one, other = counter_values("a", 0, 200_000, 1.0), counter_values("b", 0, 200_000, 1.0)
    assert -1 <= one.min() < -0.999 and 0.999 < one.max() < 1
    assert abs(one.mean()) < 0.01 and abs(one.std() - 3**-0.5) < 0.01
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.01 and abs(np.corrcoef(one[1:], one[:-1])[0, 1]) < 0.01
    histogram = np.histogram(one, 20, (-1, 1))[0]
    assert histogram.min() > 9500 and histogram.max() < 10500


def test_a_linear_layer_keeps_the_variance() -> None:
    weight = counter_weight("w", (256, 512))
    values = np.random.default_rng(0).standard_normal((64, 512), dtype=np.float32)
    assert 0.9 < (values @ weight.T).std() < 1.1


def test_rows_of_a_weight() -> None:
    whole = counter_weight("experts", (6, 4, 8))
    assert whole.shape == (6, 4, 8)
    assert np.array_equal(counter_weight("experts", (6, 4, 8), 2, 5), whole[2:5])
    assert counter_weight("experts", (6, 4, 8), 3, 3).shape == (0, 4, 8)
    assert abs(whole).max() <= weight_scale((6, 4, 8)) == pytest.approx((3 / 8) ** 0.5)


def test_norms_are_near_one_and_biases_near_zero() -> None:
    assert 0.9 <= counter_weight("norm.weight", (512,)).min() < counter_weight("norm.weight", (512,)).max() <= 1.1
    assert abs(counter_weight("q_proj.bias", (512,)).mean()) < 0.01
    assert counter_weight("scalar", ()).shape == ()


@pytest.mark.parametrize("rows", [(-1, 2), (3, 2), (0, 7)])
def test_rows_outside_the_weight(rows: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="of 6"):
        counter_weight("w", (6, 4), *rows)
    with pytest.raises(ValueError, match="negative"):
        counter_values("w", -1, 2, 1.0)
