"""Tiles of products with weights in blocks, by rows and sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...plans.weight_layout import chunk_of
from ..accelerator import Accelerator
from .tiles import power_of_two_above

MOST_STREAMED = 256
"""Rows up to which weights become elements on the way to the product: beyond, doing so once is less work."""

RECEIPT = (
    "shares of the roofline: set, after single layers of Llama 3.1 8B on one H200, 2026-11-28; tiles of sm_90a: measured so, "
    "but for q4 at 64 rows"
)

_SHARES = ((1, 0.7), (2, 0.6), (17, 0.5), (65, 0.6), (257, 0.7), (1024, 0.85))
"""Shares of the roofline from so many rows on."""

_WARPS = 16
"""Of a unit, that few rows of codes want: with two or four to a block, which wait for memory in turn, more blocks are needed."""

_LONG = 16384
"""Columns from which on a layer is many blocks for each unit, however they are cut."""


@dataclass(frozen=True)
class Tiles:
    """Sizes of `rows` of sources/block_linear.py: rows, columns (of the output) and inner (of K) of a tile, warps of a block,
    stages of its loads, and into how many shares K is cut."""

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int
    shares: int = 1


def efficiency(rows: int) -> float:
    """Share of the roofline at a number of rows."""
    return max((least, share) for least, share in _SHARES if least <= max(rows, 1))[1]


def tiles_for(accelerator: Accelerator, dtype: str, stored: str, rows: int, columns: int, inner: int) -> Tiles:
    """Tiles for buckets of up to `rows` rows of `dtype`, of a layer with so many columns of output and of input, whose weight is
    of the block type `stored`."""
    if stored == "e4m3_128":
        sizes = _bytes_of_floats(accelerator, dtype, rows, columns)
        return replace(sizes, shares=_shares(accelerator, sizes, rows, columns, inner))
    if dtype == "f32":
        return Tiles(16, 16, 2 * chunk_of(inner, stored), 4, 2)
    if accelerator.kind == "hip":
        return Tiles(16 if rows <= 16 else 32, 32, 128, 4, 2)
    if accelerator.arch == "sm_90a":
        sizes = _hopper_bytes(rows, columns) if stored == "q8_0" else _hopper_nibbles(rows, columns, inner, stored)
    else:
        sizes = Tiles(16, 64, 256, 4, 3) if rows <= 16 else Tiles(min(64, power_of_two_above(rows)), 64, 128, 4, 3)
    of_hopper = accelerator.arch == "sm_90a" and rows <= 8
    return replace(sizes, shares=_shares(accelerator, sizes, rows, columns, inner, _WARPS if of_hopper else 0))


def smallest_tiles(tiles: Tiles, chunk: int) -> Tiles:
    """Tiles that want few registers, in as many shares of K as others."""
    return replace(tiles, rows=min(tiles.rows, 16), columns=32, inner=min(max(2 * chunk, 64), 128), warps=4, stages=2)


def _bytes_of_floats(accelerator: Accelerator, dtype: str, rows: int, columns: int) -> Tiles:
    """A block of K at a time: its sums are scaled."""
    if dtype == "f32":
        return Tiles(16, 16, 128, 4, 2)
    if accelerator.kind == "hip":
        return Tiles(16 if rows <= 16 else 32, 32, 128, 4, 2)
    if rows <= 16:
        return Tiles(16, 64, 128, 4, 4)
    height = min(64, power_of_two_above(rows))
    if accelerator.arch == "sm_90a" and columns >= _LONG:
        return Tiles(height, 128, 128, 8, 3)
    return Tiles(height, 64, 128, 4, 4 if accelerator.arch == "sm_90a" else 3)


def _hopper_bytes(rows: int, columns: int) -> Tiles:
    if rows == 1:
        return Tiles(8, 32, 256, 2, 6 if columns >= _LONG else 4)
    if rows <= 8:
        return Tiles(8, 128, 256, 8, 4)
    if rows <= 32:
        return Tiles(16 if rows <= 16 else 32, 128, 128, 8, 4)
    return Tiles(64 if rows <= 64 else 128, 128, 128, 8, 3)


def _hopper_nibbles(rows: int, columns: int, inner: int, stored: str) -> Tiles:
    if rows <= 8 and (stored == "q4_1" or (rows == 1 and columns < _LONG and inner < 8192)):
        return Tiles(8, 32, 256, 2, 4)
    if rows <= 8:
        return Tiles(8, 64, 512, 4, 4)
    if rows <= 32:
        return Tiles(16, 128, 256, 8, 4) if rows <= 16 else Tiles(32, 128, 256, 8, 3)
    # the minimums want the registers of the wider tile
    return Tiles(64 if rows <= 64 else 128, 128 if stored == "q4_1" and rows > 64 else 256, 128, 8, 3)


def _shares(accelerator: Accelerator, tiles: Tiles, rows: int, columns: int, inner: int, warps: int = 0) -> int:
    """So many that all units have work, and `warps` warps each, each share at least a few blocks of K."""
    blocks = -(-columns // tiles.columns) * -(-rows // tiles.rows)
    of_unit = max(2 if tiles.inner * tiles.columns <= 128 * 128 else 1, warps // tiles.warps)
    wanted = accelerator.units * of_unit // blocks
    return max(1, min(8, wanted, inner // (4 * tiles.inner)))
