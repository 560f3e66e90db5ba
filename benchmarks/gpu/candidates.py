"""Tiles that are tried for a tuning case. What does not fit a device is dropped when it is built."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from tokenspeed.targets.accelerator import Accelerator
from tokenspeed.targets.triton.measured_tiles import ExpertTiles, LinearTiles, SplitTiles, Way

from .tuning_cases import TuningCase

Tiles = LinearTiles | SplitTiles | ExpertTiles


def candidates(tuned: TuningCase, accelerator: Accelerator) -> list[Tiles]:
    """Each once; a case of the same kind and rows has the same, but for what its sizes rule out."""
    if tuned.kind == "attention":
        return list(_split(tuned.key["rows"] * tuned.key["kv_heads"], accelerator))
    if tuned.kind == "experts":
        return list(_experts(tuned.key["rows"] * tuned.key["top_k"] / tuned.key["experts"], accelerator))
    found = [tiles for tiles in _linear(tuned.key["rows"], accelerator) if tuned.key["inner"] % tiles.inner == 0]
    return [tiles for tiles in dict.fromkeys(found) if tiles.columns <= max(128, tuned.key["columns"])]


def _linear(rows: int, accelerator: Accelerator) -> Iterator[LinearTiles]:
    hopper = accelerator.arch == "sm_90a"
    if rows <= 2:
        yield from _one_row(rows)
    if rows <= 64:
        yield from _few(max(16, rows))
    if hopper and rows <= 256:
        yield from _ahead(max(8, rows), accelerator)
    if hopper and rows <= 64:
        yield from _shared(max(8, rows), accelerator)
    if rows > 64:
        yield from _many(hopper)


def _one_row(rows: int) -> Iterator[LinearTiles]:
    for columns, inner, warps, stages in product((1, 2, 4, 8), (512, 1024, 2048, 4096), (2, 4, 8), (2, 4)):
        loaded = columns * inner // (32 * warps)
        if 32 <= loaded <= 64 and (rows == 1 or (loaded, stages) == (64, 2)):
            yield _tiles("one_row", 1, columns, inner, warps, stages)


def _few(height: int) -> Iterator[LinearTiles]:
    for columns, inner, stages in (
        (16, 512, 4),
        (16, 1024, 3),
        (32, 256, 4),
        (32, 256, 6),
        (32, 512, 3),
        (32, 512, 4),
        (64, 256, 3),
    ):
        yield _tiles("few_rows", height, columns, inner, 4, stages)
    for columns, inner, stages in ((64, 128, 6), (64, 256, 3), (64, 256, 4), (128, 128, 3), (128, 128, 4), (128, 256, 3)):
        yield _tiles("few_rows_turned", height, columns, inner, 4, stages)


def _ahead(rows: int, accelerator: Accelerator) -> Iterator[LinearTiles]:
    """The rings that fill a unit's memory, and half of it: the next kernel's then fits beside it."""
    heights = (rows,) if rows <= 64 else (64, 128) if rows == 128 else (128, 256)
    for height, columns, inner in product(heights, (16, 32, 64, 128), (64, 128, 256, 512)):
        if not 8192 <= columns * inner * 2 <= 32768 or (height > 64 and columns < 64):
            continue
        stage = (columns + height) * inner * 2
        for room in (accelerator.shared_bytes_per_block, accelerator.shared_bytes_per_block // 2 - 1024):
            stages = min(8, (room - 1024) // stage)
            if stages >= 2:
                yield _tiles("few_rows_ahead", height, columns, inner, 4, stages)
                if columns == 128:
                    yield _tiles("few_rows_ahead", height, columns, inner, 8, stages)


def _shared(height: int, accelerator: Accelerator) -> Iterator[LinearTiles]:
    """As those, but a warp has at least 64 elements of K to itself."""
    for columns, inner, warps in product((16, 32), (256, 512, 1024), (4, 8)):
        stage = (columns + height) * inner * 2
        if inner >= 64 * warps and columns * inner <= 16384:
            for room in (accelerator.shared_bytes_per_block, accelerator.shared_bytes_per_block // 2 - 1024):
                stages = min(8, (room - 1024) // stage)
                if stages >= 2:
                    yield _tiles("few_rows_shared", height, columns, inner, warps, stages)


def _many(hopper: bool) -> Iterator[LinearTiles]:
    for sizes in (
        *((64, 64, 64, 4, 4), (64, 64, 64, 4, 6), (64, 64, 128, 4, 4), (64, 128, 64, 4, 4), (64, 128, 64, 4, 6)),
        *((128, 32, 128, 4, 4), (128, 64, 64, 4, 4), (128, 64, 64, 4, 6), (128, 64, 128, 4, 3), (128, 64, 64, 8, 5)),
        *((128, 128, 64, 4, 4), (128, 128, 64, 8, 3), (128, 128, 64, 8, 4), (256, 64, 64, 8, 4), (64, 256, 64, 4, 4)),
    ):
        yield _tiles("many_rows", *sizes)
    if hopper:
        for sizes in (
            *((64, 64, 128, 4, 5), (64, 128, 64, 4, 6), (64, 128, 128, 4, 4), (64, 256, 64, 4, 4), (64, 256, 64, 8, 4)),
            *((128, 64, 64, 4, 6), (128, 64, 128, 4, 4), (128, 128, 64, 4, 4), (128, 128, 64, 4, 6), (128, 128, 64, 8, 4)),
            *((128, 128, 128, 8, 3), (128, 256, 64, 8, 3), (128, 256, 64, 8, 4), (256, 128, 64, 8, 3), (256, 128, 64, 8, 4)),
        ):
            yield _tiles("many_rows_by_descriptors", *sizes)
        for sizes, group in product(((128, 128, 64, 4, 6), (128, 256, 64, 8, 3)), (4, 16)):
            yield _tiles("many_rows_by_descriptors", *sizes, group)


def _split(heads: int, accelerator: Accelerator) -> Iterator[SplitTiles]:
    sizes = ((64, 1, 3), (64, 2, 3), (64, 4, 3), (64, 4, 4), (32, 1, 3), (32, 2, 3))
    for power, (tokens, warps, stages) in product(range(7), sizes):
        programs = heads << power
        if accelerator.units // 2 <= programs <= 8 * accelerator.units or (power <= 1 and heads > 256):
            yield SplitTiles(shares=1 << power, tokens=tokens, warps=warps, stages=stages)


def _experts(of_expert: float, accelerator: Accelerator) -> Iterator[ExpertTiles]:
    deep = (2, 3, 4, 6) if accelerator.kind == "cuda" else (2,)
    heights = (16,) if of_expert <= 4 else (16, 32, 64) if of_expert <= 32 else (32, 64, 128)
    widths = (16, 32, 64, 128) if of_expert <= 4 else (32, 64, 128)
    for pairs, columns, inner, warps, stages in product(heights, widths, (64, 128, 256), (4, 8), deep):
        stage = (pairs + 2 * columns) * inner * 2
        wide = columns >= 128 and pairs >= 64
        if 12288 <= stage <= 65536 and 60000 <= stage * stages <= accelerator.shared_bytes_per_block and (warps == 8) == wide:
            yield ExpertTiles(pairs=pairs, columns=columns, inner=inner, warps=warps, stages=stages)


def _tiles(way: Way, rows: int, columns: int, inner: int, warps: int, stages: int, group: int = 8) -> LinearTiles:
    return LinearTiles(way=way, rows=rows, columns=columns, inner=inner, warps=warps, stages=stages, group=group)
