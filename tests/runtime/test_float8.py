"""8-bit floats of checkpoints: what bytes stand for, blocks that restate them, and a rank's part of both."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenspeed.plans.errors import PlanError
from tokenspeed.plans.recipe import Blocks, Dequantize, Part, Recipe, Scales, Source, Stretch
from tokenspeed.plans.schema import SourceTensor
from tokenspeed.runtime.float8 import VALUES
from tokenspeed.runtime.recipe_evaluation import Stored, evaluate

ROWS, COLUMNS = 200, 512
GENERATOR = np.random.default_rng(8)
CODES = GENERATOR.integers(0, 127, (ROWS, COLUMNS), np.uint8) | GENERATOR.integers(0, 2, (ROWS, COLUMNS), np.uint8) << 7


def test_what_bytes_stand_for() -> None:
    expected = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    assert np.array_equal(VALUES, expected, equal_nan=True)


def value(make: type[Blocks] | type[Dequantize], block: tuple[int, int], part: Part | None = None, rank: int = 0) -> np.ndarray:
    factors = GENERATOR.random((-(-ROWS // block[0]), -(-COLUMNS // block[1]))).astype(np.float32)
    made = [("w", "F8_E4M3", CODES), ("s", "F32", factors)]
    stored = {
        name: Stored(SourceTensor(name=name, encoding=kind, shape=data.shape, bytes=data.nbytes), memoryview(data.tobytes()))
        for name, kind, data in made
    }
    recipe: Recipe = make(Source("w"), Scales(Source("s"), *block))
    if part is not None:
        recipe = Part(recipe, part.axis, part.dimension, part.stretches)
    found = evaluate(recipe, stored, None, "w", {"tp": rank}).data
    expected = VALUES[CODES] * np.repeat(np.repeat(factors, block[0], 0)[:ROWS], block[1], 1)[:, :COLUMNS]
    if part is not None:
        first, stop = part.stretches[0].of_rank(rank)
        expected = expected[first:stop] if part.dimension == 0 else expected[:, first:stop]
    if make is Blocks:
        blocks = found.reshape(len(found), -1, 132)
        scales = np.ascontiguousarray(blocks[..., :4]).view(np.float32)
        found = (VALUES[blocks[..., 4:]] * scales).reshape(expected.shape)
    np.testing.assert_array_equal(found, expected)
    return found


ROWS_CUT = Part(Source("w"), "tp", 0, (Stretch(0, ROWS, 72),))
COLUMNS_CUT = Part(Source("w"), "tp", 1, (Stretch(0, COLUMNS, 128),))


@pytest.mark.parametrize("make", [Blocks, Dequantize])
@pytest.mark.parametrize("block", [(128, 128), (1, COLUMNS), (ROWS, COLUMNS), (64, 256)])
def test_values(make: type[Blocks] | type[Dequantize], block: tuple[int, int]) -> None:
    value(make, block)
    value(make, block, ROWS_CUT, 1)
    value(make, block, COLUMNS_CUT, 3)


def test_a_cut_within_a_block_is_refused() -> None:
    cut = Part(Source("w"), "tp", 1, (Stretch(0, COLUMNS, 64),))
    value(Dequantize, (128, 128), cut, 5)
    with pytest.raises(PlanError) as refused:
        value(Blocks, (128, 128), cut, 5)
    assert "along the blocks" in str(refused.value.got)


def test_scales_within_a_block_are_numbers_only() -> None:
    value(Dequantize, (16, 32))
    with pytest.raises(PlanError):
        value(Blocks, (16, 32))
