"""Tiles of products of 8-bit floats, by rows and sizes: of sm_90a those that were measured best on one H200, 2026-11-29."""

from __future__ import annotations

from dataclasses import dataclass

from ..accelerator import Accelerator
from .tiles import power_of_two_above

MOST_SPLIT, MOST_DECODED = 16, 64
"""Rows up to which x is two 8-bit floats, so that nothing of it is lost, and up to which the weight becomes numbers of x's type
(block_linear.py), which is as exact; more rows are rounded to one 8-bit float."""

_LONG = 16384
"""Columns from which on a layer is many blocks for each unit, however they are cut."""


@dataclass(frozen=True)
class FewTiles:
    """Sizes of `few_rows` of sources/float8_linear.py: rows and columns (of the output) of a tile, warps, stages, into how many
    shares K is cut, and blocks of the weight that are asked for ahead of x."""

    rows: int
    columns: int
    warps: int
    stages: int
    shares: int = 1
    ahead: int = 0


@dataclass(frozen=True)
class ManyTiles:
    """Those of `many_rows`: rows and columns (of the output) of a tile, warps, stages, tiles of rows side by side, and programs
    to a unit that copy by descriptors and stay (0: a program for each tile)."""

    rows: int
    columns: int
    warps: int
    stages: int
    group: int = 8
    staying: int = 0


MODEST = ManyTiles(64, 64, 4, 2)
"""What fits every device, whatever else a function does."""


def splits(accelerator: Accelerator, dtype: str, stored: str) -> bool:
    """Whether a device multiplies weights of a block type with x of `dtype` as 8-bit floats."""
    return stored == "e4m3_128" and dtype == "bf16" and "fp8-e4m3" in accelerator.instructions


def few_tiles(accelerator: Accelerator, rows: int, columns: int, inner: int) -> FewTiles:
    """Tiles for buckets of up to `rows` rows, of a layer with so many columns of output and of input."""
    height = max(8 if accelerator.kind == "cuda" else 16, power_of_two_above(rows))
    if accelerator.kind == "hip":
        return FewTiles(height, 64, 4, 2)
    if columns >= _LONG:
        return FewTiles(height, 128, 4, 5, 1, 4) if height == 8 else FewTiles(height, 128, 8, 4, 1, 4)
    blocks, deep = -(-columns // 64), height > 8 or inner >= 8192
    shares = max(1, min(4, 3 * accelerator.units // blocks, inner // 1024))
    return FewTiles(height, 64, 4, 8 if deep else 6, shares, 4)


def many_tiles(accelerator: Accelerator, rows: int, columns: int) -> ManyTiles:
    """Tiles for buckets of up to `rows` rows: programs that stay on Hopper, smaller tiles elsewhere where there are few."""
    if accelerator.kind == "hip":
        return ManyTiles(64, 64, 4, 2)
    if accelerator.arch == "sm_90a":
        return ManyTiles(128, 64, 4, 4, staying=2)
    if -(-rows // 128) * -(-columns // 64) >= accelerator.units:
        return ManyTiles(128, 64, 4, 4)
    return ManyTiles(64, 64, 4, 4)
