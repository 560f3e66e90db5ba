"""Which way a linear layer is computed, and with which tiles, by rows and sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..accelerator import Accelerator

Way = Literal["one_row", "few_rows", "few_rows_turned", "many_rows", "many_rows_by_descriptors"]


@dataclass(frozen=True)
class Tiles:
    """A function of sources/linear.py and its sizes: rows, columns (of the output) and inner (of K) of a tile, `group` tiles of
    rows side by side, warps of a block, stages of its loads."""

    way: Way
    rows: int
    columns: int
    inner: int
    warps: int
    stages: int
    group: int = 8


def tiles_for(accelerator: Accelerator, dtype: str, rows: int, columns: int, inner: int) -> Tiles:
    """Tiles for buckets of up to `rows` rows."""
    if accelerator.kind == "hip":
        return _amd(rows)
    if dtype == "f32":
        return Tiles("one_row", 1, 16, 512, 8, 2) if rows <= 4 else Tiles("few_rows", 16, 32, 64, 4, 3)
    if rows <= 2:
        return Tiles("one_row", 1, 16, min(512, _at_most(inner)), 8, 2)
    if rows <= 64:
        return Tiles(
            "few_rows", max(16, 1 << (rows - 1).bit_length()), 32 if columns >= 8192 else 16, 256, 4, 4 if rows <= 32 else 3
        )
    if accelerator.arch == "sm_80" or rows <= 128:
        return Tiles("many_rows", 64 if rows <= 64 else 128, 128, 64, 8 if rows > 64 else 4, 4)
    if inner % 8 == 0 and columns % 8 == 0 and accelerator.arch == "sm_90a" and rows >= 256:
        return Tiles("many_rows_by_descriptors", 128, 256, 64, 8, 3)
    return Tiles("many_rows", 128, 256, 64, 8, 3)


def _amd(rows: int) -> Tiles:
    if rows <= 2:
        return Tiles("one_row", 1, 16, 512, 4, 2)
    if rows <= 64:
        return Tiles("few_rows", 16 if rows <= 16 else 32, 32, 128, 4, 2)
    return Tiles("many_rows", 128, 128, 64, 8, 2)


def _at_most(inner: int) -> int:
    return 1 << (inner.bit_length() - 1)
