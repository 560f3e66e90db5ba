"""Bytes of weights by type and layout, and what recipes over blocks may do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenspeed.plans.recipe import (
    Blocks,
    Cast,
    Concat,
    Dequantize,
    Quantize,
    Recipe,
    Slice,
    Source,
    Transpose,
    UnpermuteRope,
    decoded,
)
from tokenspeed.plans.recipe_shapes import infer
from tokenspeed.plans.weight_layout import BLOCKS, PANEL_BLOCKS, stored_bytes

SOURCES = {
    "a": ((8, 64), "Q4_0"),
    "b": ((4, 64), "Q4_0"),
    "k": ((2, 256), "Q4_K"),
    "x": ((8, 64), "F32"),
    "six": ((2, 256), "Q6_K"),
}


def result(recipe: Recipe) -> tuple[tuple[int, ...], str]:
    return infer(recipe, lambda name: SOURCES[name])


@given(rows=st.integers(1, 200), groups=st.integers(1, 9), dtype=st.sampled_from(PANEL_BLOCKS))
def test_panels_take_the_bytes_of_ggml_blocks_once_rows_are_whole_panels(rows: int, groups: int, dtype: str) -> None:
    padded = -(-rows // 32) * 32
    elements, size = BLOCKS[dtype]
    assert stored_bytes((rows, groups * elements), dtype, "panel") == padded * groups * size
    assert stored_bytes((3, rows, groups * elements), dtype, "panel") == 3 * padded * groups * size


def test_plain_types() -> None:
    assert stored_bytes((5, 7), "f32", "none") == 140 and stored_bytes((), "bf16", "none") == 2
    assert stored_bytes((33, 7), "bf16", "panel") == 64 * 8 * 2  # odd K is padded to a pair
    assert stored_bytes((33, 7), "f32", "panel") == 64 * 7 * 4


@pytest.mark.parametrize(
    ("shape", "dtype", "prepack"),
    [((32, 33), "q8_0", "panel"), ((32,), "f32", "panel"), ((32, 32), "i32", "panel"), ((32, 256), "q4_k", "panel")],
)
def test_what_has_no_such_layout(shape: tuple[int, ...], dtype: str, prepack: str) -> None:
    with pytest.raises(ValueError):
        stored_bytes(shape, dtype, prepack)


def test_blocks_keep_their_type_and_move_by_rows() -> None:
    a, b = Blocks(Source("a")), Blocks(Source("b"))
    assert result(a) == ((8, 64), "q4_0")
    assert result(Concat((a, b), 0)) == ((12, 64), "q4_0")
    assert result(Slice(a, 0, 2, 5)) == ((3, 64), "q4_0")
    assert result(UnpermuteRope(a, 2)) == ((8, 64), "q4_0")
    assert result(Quantize(Blocks(Source("k")), "q4_1")) == ((2, 256), "q4_1")
    assert result(Quantize(Cast(Source("x"), "bf16"), "q8_0")) == ((8, 64), "q8_0")


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        (Cast(Blocks(Source("a")), "f32"), "cast of q4_0 blocks"),
        (Slice(Blocks(Source("a")), 1, 0, 32), "along the blocks"),
        (Concat((Blocks(Source("a")), Blocks(Source("a"))), 1), "along the blocks"),
        (Transpose(Blocks(Source("a")), (1, 0)), "transpose of q4_0 blocks"),
        (Quantize(Blocks(Source("a")), "q8_0"), "quantize of q4_0 blocks"),
        (Quantize(Source("x"), "q2_0"), "unknown type"),
        (Quantize(Slice(Source("x"), 1, 0, 33), "q8_0"), "blocks of 32"),
        (Blocks(Source("six")), "not rows of known blocks"),
        (Blocks(Source("x")), "not rows of known blocks"),
        (Concat((Blocks(Source("a")), Source("x")), 0), "concat of"),
    ],
)
def test_what_blocks_cannot_do(recipe: Recipe, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        result(recipe)


def test_decoded_recipes_have_no_blocks() -> None:
    kept = Concat((UnpermuteRope(Blocks(Source("a")), 2), Blocks(Source("b"))), 0)
    assert decoded(kept) == Concat((UnpermuteRope(Dequantize(Source("a")), 2), Dequantize(Source("b"))), 0)
    assert result(Cast(decoded(kept), "bf16")) == ((12, 64), "bf16")
