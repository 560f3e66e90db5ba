"""Which way a linear layer is computed, and with which tiles: as was measured (measured_tiles.py), else by rules here."""

from __future__ import annotations

from ..accelerator import Accelerator
from .measured_tiles import LinearTiles, Way, find_linear

RECEIPT = "modelled: shares of the roofline as products of Llama 3.1 8B reached them on an H200, 2026-11-28; tiles by rules"
"""How efficiency is known where no row of a table is found."""

_SHARES = ((1, 0.95), (2, 0.9), (33, 0.85), (65, 0.7), (257, 0.75), (1024, 0.95))
"""Shares of the roofline from so many rows on."""

_LONG = 16384
"""Columns from which on a layer is many blocks for each unit, however they are cut."""


def efficiency(rows: int) -> float:
    """Share of the roofline at a number of rows."""
    return max((least, share) for least, share in _SHARES if least <= max(rows, 1))[1]


def _tiles(way: Way, rows: int, columns: int, inner: int, warps: int, stages: int) -> LinearTiles:
    return LinearTiles(way=way, rows=rows, columns=columns, inner=inner, warps=warps, stages=stages)


def tiles_for(accelerator: Accelerator, dtype: str, rows: int, columns: int, inner: int, aligned: bool) -> LinearTiles:
    """Tiles for buckets of up to `rows` rows, of a layer with so many columns of output and of input; `aligned`: all rows begin
    at multiples of 16 bytes."""
    if dtype == "f32":
        return _exact(rows)
    if not aligned or columns % 16 or inner % 16:
        return _unaligned(rows)
    if (measured := find_linear(accelerator.arch, dtype, rows, columns, inner)) is not None:
        return measured.tiles
    if accelerator.kind == "hip":
        return _amd(rows)
    if accelerator.arch == "sm_90a":
        return _hopper(accelerator, rows, columns, inner)
    return _common(rows, columns)


def modest_tiles(rows: int) -> LinearTiles:
    """Tiles that fit every device, whatever the types and what else a function does."""
    return _unaligned(rows)


def _hopper(accelerator: Accelerator, rows: int, columns: int, inner: int) -> LinearTiles:
    one_wave = columns <= 32 * accelerator.units
    if rows == 1:
        return _tiles("one_row", 1, 8, 1024, 4, 4) if columns >= _LONG else _tiles("one_row", 1, 4, 1024, 2, 2)
    if rows <= 64:
        height = max(16, 1 << (rows - 1).bit_length())
        if columns >= _LONG:
            return _tiles("few_rows_turned", height, 128, 128, 4, 3 if height == 16 else 4)
        if one_wave:
            return _tiles("few_rows", height, 32, *((256, 4, 4) if height == 64 else (512, 4, 4 if height == 16 else 3)))
        return _tiles("few_rows_turned", height, 64, *((128, 4, 6) if height == 64 else (256, 4, 3)))
    busy = (tiles for tiles in _MANY if _count(tiles, rows, columns) >= _BUSY * accelerator.units)
    return next(busy, _MANY[-1])


def _count(tiles: LinearTiles, rows: int, columns: int) -> int:
    return -(-rows // tiles.rows) * -(-columns // tiles.columns)


_BUSY = 0.7
"""Share of the units that large tiles must keep busy to be better than smaller ones."""

_MANY = (
    _tiles("many_rows_by_descriptors", 128, 256, 64, 8, 3),
    _tiles("many_rows_by_descriptors", 128, 128, 64, 4, 4),
    _tiles("many_rows_by_descriptors", 64, 128, 64, 4, 6),
    _tiles("many_rows", 128, 64, 64, 4, 6),
    _tiles("many_rows", 128, 32, 128, 4, 4),
)
"""Of Hopper, the largest first."""


def _common(rows: int, columns: int) -> LinearTiles:
    """Of architectures with at least 163 KiB of shared memory to a block, and warps of 32."""
    if rows == 1:
        return _tiles("one_row", 1, 4, 1024, 4, 2)
    if rows <= 64:
        height = max(16, 1 << (rows - 1).bit_length())
        return _tiles("few_rows", height, 32 if columns >= 4096 else 16, 128 if height == 64 else 256, 4, 3)
    return _tiles("many_rows", 128, 128, 64, 8, 3)


def _amd(rows: int) -> LinearTiles:
    if rows == 1:
        return _tiles("one_row", 1, 4, 1024, 2, 2)
    if rows <= 64:
        return _tiles("few_rows", 16 if rows <= 16 else 32, 32, 128, 4, 2)
    return _tiles("many_rows", 128, 128, 64, 8, 2)


def _unaligned(rows: int) -> LinearTiles:
    """Of layers whose rows do not begin at multiples of 32 bytes: every element is loaded by itself, through registers."""
    if rows == 1:
        return _tiles("one_row", 1, 4, 512, 4, 2)
    return _tiles("few_rows", 16, 32, 64, 4, 2) if rows <= 64 else _tiles("many_rows", 64, 64, 32, 4, 2)


def _exact(rows: int) -> LinearTiles:
    """Of f32, whose products have no matrix instruction that is as exact."""
    return _tiles("one_row", 1, 4, 512, 4, 2) if rows <= 4 else _tiles("few_rows", 16, 32, 64, 4, 2)
