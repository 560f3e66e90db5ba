"""Tiles of attention, and into how many shares the keys of a sequence are cut: as measured (measured_tiles.py), else by rules."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from msgspec import structs

from ..accelerator import Accelerator
from .kernel import DeviceSetting
from .measured_tiles import SplitTiles, find_split
from .tiles import power_of_two_above

_PROGRAMS_PER_UNIT = 2
_MOST_SHARES = 32
_LEAST_TOKENS = 64
"""Of a share, where contexts are as long as they may be."""


_MOST_CHUNK_SHARES, _LEAST_CHUNK_TOKENS, _MOST_ROWS_IN_SHARES = 8, 512, 1536
_SHARE_COST = 0.01
"""Of a share beyond the first, in parts of what a unit takes for a tile with all keys."""

_WIDTHS = (64, 128)
_STAGES = ((128, 2), (64, 4))
"""Of Hopper's own chunks: tokens of a tile, and as many stages as shared memory holds beside the queries. 128 tokens want a few
registers too many with few wide heads together, or many blocks of the cache in a tile; with soft caps they may."""


@dataclass(frozen=True)
class Tiles:
    """Rows (heads times queries) and tokens of a tile, warps of a block, stages of its loads; whether those go by descriptors."""

    rows: int
    tokens: int
    warps: int
    stages: int
    described: bool = False


def split_tiles(setting: DeviceSetting, dtype: str, kv_heads: int, width: int, rows: int | None) -> SplitTiles:
    """Of decoding sequences, for buckets of `rows` of them (None: of any number): as was measured, else by rules."""
    expected = max(1, setting.max_decode_rows // 4) if rows is None else rows
    measured = find_split(setting.accelerator.arch, dtype, expected, kv_heads, width)
    if measured is None or setting.block_tokens % measured.tiles.tokens:
        tokens = _tokens(dtype, width, setting.block_tokens, 64)
        stages = 4 if setting.accelerator.kind == "cuda" else 2
        return SplitTiles(shares=shares(setting, kv_heads, rows), tokens=tokens, warps=4, stages=stages)
    return structs.replace(measured.tiles, shares=min(measured.tiles.shares, _most_shares(setting)))


def chunk_tiles(accelerator: Accelerator, dtype: str, width: int, block_tokens: int) -> Tiles:
    """Of chunks."""
    if dtype == "f32":
        return Tiles(16, _tokens(dtype, width, block_tokens, 32), 4, 2)
    tokens = _tokens(dtype, width, block_tokens, 64)
    if accelerator.arch == "sm_100a":
        # 64 tokens of heads that are 32 wide or less want a few registers too many
        return Tiles(64, tokens if width > 32 else min(tokens, 32), 8, 2 if width <= 128 else 1)
    if accelerator.arch == "sm_80":
        return Tiles(64, _tokens(dtype, width, block_tokens, 32 if width <= 128 else 64), 4 if width <= 128 else 8, 2)
    if accelerator.arch == "sm_90a" and width > 128:
        # four warps want a few registers too many with some heads
        return Tiles(64, tokens, 8, 2)
    if accelerator.kind == "hip" or width > 128:
        return Tiles(64, tokens, 4, 2)
    if accelerator.arch == "sm_90a" and block_tokens % tokens == 0:
        return Tiles(128, tokens, 8, 3, described=True)
    return Tiles(64, tokens, 4, 2)


def float8_chunk_tiles(accelerator: Accelerator, dtype: str, width: int, block_tokens: int) -> Tiles:
    """Of chunks over keys and values kept as 8-bit floats, which take more registers."""
    tiles = chunk_tiles(accelerator, dtype, width, block_tokens)
    if dtype == "f32" or accelerator.kind == "hip":
        return tiles
    if width > 128:
        return replace(tiles, rows=32, warps=8, stages=1)
    return replace(tiles, rows=64, warps=4 if accelerator.arch == "sm_90a" else 8)


def hopper_chunk_tiles(setting: DeviceSetting, dtype: str, width: int, group: int, aligned: bool) -> tuple[Tiles, ...]:
    """Of chunks by warps with roles of their own (sources/hopper_attention.py), the best first; none where that cannot be.

    `group` is a power of two of heads that share a kv head, or more than those; `aligned`: all heads of all rows begin at
    multiples of 16 bytes. What is refused here, or does not fit the device, runs as `chunk_tiles` says.
    """
    block = setting.block_tokens
    fits = dtype in {"bf16", "f16"} and width in _WIDTHS and group <= 64 and block >= 8 and power_of_two_above(block) == block
    if "wgmma" not in setting.accelerator.instructions or not fits or not aligned:
        return ()
    sizes = _STAGES if width == 64 or (group >= 4 and block >= 64) else _STAGES[1:]
    return tuple(Tiles(128, tokens, 4, stages, described=True) for tokens, stages in sizes)


def shares(setting: DeviceSetting, kv_heads: int, rows: int | None) -> int:
    """Shares of a sequence's keys for buckets of `rows` decoding sequences (None: of any number), to keep all units busy."""
    expected = max(1, setting.max_decode_rows // 4) if rows is None else rows
    wanted = ceil(_PROGRAMS_PER_UNIT * setting.accelerator.units / (expected * kv_heads))
    return min(power_of_two_above(wanted), _MOST_SHARES, _most_shares(setting))


def chunk_shares(setting: DeviceSetting, tiles: int, rows: int) -> int:
    """Into how many shares the keys of chunks are cut, where a step of `rows` rows makes `tiles` tiles: a few rows behind a long
    context would leave most units idle."""
    most = max(1, min(_MOST_CHUNK_SHARES, setting.max_context // _LEAST_CHUNK_TOKENS, most_rows_in_shares(setting) // rows))

    def rounds(count: int) -> float:
        """How long all units take, in tiles of all keys; what shares cost besides is set, not measured."""
        return ceil(tiles * count / setting.accelerator.units) / count + _SHARE_COST * (count - 1)

    return min(range(1, most + 1), key=rounds)


def most_rows_in_shares(setting: DeviceSetting) -> int:
    """Rows times shares that there is room for."""
    return min(_MOST_ROWS_IN_SHARES, _MOST_CHUNK_SHARES * setting.max_rows)


def _most_shares(setting: DeviceSetting) -> int:
    return power_of_two_above(max(1, setting.max_context // _LEAST_TOKENS))


def _tokens(dtype: str, width: int, block_tokens: int, most: int) -> int:
    """Tokens of a tile, such that the tile lies in one cache block where those are large enough."""
    if dtype == "f32" or width > 128:
        most //= 2
    return max(16, most if block_tokens % most else min(most, block_tokens))
