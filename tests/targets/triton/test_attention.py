"""Attention's kernels, interpreted: decoding sequences by shares, chunks by tiles, both in one step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from msgspec import structs
from tokenspeed.targets.rates import nominal
from tokenspeed.targets.registry import ACCELERATORS
from tokenspeed.targets.triton import attention
from tokenspeed.targets.triton.attention_tiles import Tiles, chunk_shares, hopper_chunk_tiles

from .compared import SETTING, Array, Case, compare
from .interpreter import Interpreter

HEADS, KV_HEADS = 6, 2
SCALE = 0.35


def _case(
    rows_of: list[int],
    lengths: list[int],
    rows: int,
    logit_rows: int,
    style: tuple[int, float, bool] = (0, 0.0, False),
    sizes: tuple[int, int] = (8, 4),
) -> Case:
    """A step of sequences with so many rows and contexts each, one-row sequences first, in a bucket of `rows`.

    `style` is window, softcap and sinks; `sizes` the width of a head and the tokens of a block.
    """
    (window, softcap, sinks), (width, tokens) = style, sizes
    generator = np.random.default_rng(11)
    blocks = [-(-length // tokens) for length in lengths]
    numbers = generator.permutation(sum(blocks) + 2)
    tables = np.full((SETTING.max_sequences, SETTING.blocks_per_sequence), 10**6, np.int32)
    for at, count in enumerate(blocks):
        start = sum(blocks[:at])
        tables[at, :count] = numbers[start : start + count]
    cache = generator.standard_normal((2, sum(blocks) + 2, KV_HEADS, tokens, width)).astype(np.float32)
    for at, (length, count) in enumerate(zip(lengths, blocks, strict=True)):
        if length % tokens:  # what lies beyond a context may be anything
            cache[:, tables[at, count - 1], :, length % tokens :] = np.nan
    nobody = numbers[-1]
    cache[:, nobody] = np.nan
    for at, (length, count) in enumerate(zip(lengths, rows_of, strict=True)):
        if window:  # blocks before it are others' by now
            tables[at, : max(0, length - count - window + 1) // tokens] = nobody
    starts = np.full(SETTING.max_sequences + 1, 10**6, np.int32)
    starts[: len(rows_of) + 1] = np.concatenate(([0], np.cumsum(rows_of)))
    contexts = np.full(SETTING.max_sequences, 10**6, np.int32)
    contexts[: len(lengths)] = lengths
    counts = np.array([sum(rows_of), rows_of.count(1), len(rows_of), len(rows_of)], np.int32)
    q = f"tensor<?x{HEADS}x{width}xf32>"
    scores = f"scale = {SCALE} : f64, softcap = {softcap} : f64, window = {window} : i64"
    segments = f"operandSegmentSizes = array<i32: 1, {int(sinks)}>"
    attributes = f'kv_heads = {KV_HEADS} : i64, layer = "0", {scores}, {segments}'
    types = (q, *([f"tensor<{HEADS}xf32>"] * sinks))
    line = f'%r = "ts.cached_attention"({", ".join(("%a0", "%a1")[: len(types)])}) {{{attributes}}} : ({", ".join(types)}) -> {q}'
    more: list[Array] = [cache[0], cache[1], starts, contexts, tables, counts]
    numbers_given = {"scale": SCALE, "window": window, "softcap": softcap}
    return Case("attention", line, types, (), {}, more, 1, (), numbers_given, rows, logit_rows, 2e-5)


STYLES = [(0, 0.0, False), (5, 0.0, True), (0, 3.0, False), (3, 2.0, True)]


@pytest.mark.parametrize("style", STYLES)
def test_decoding_rows(interpreter: Interpreter, style: tuple[int, float, bool]) -> None:
    compare(interpreter, _case([1, 1, 1], [1, 31, 17], 4, 4, style))


@pytest.mark.parametrize("tokens", [4, 16])
def test_decoding_rows_ask_ahead(interpreter: Interpreter, monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    """The first block of a share before the kernel ahead has ended, but for the share of the newest token."""
    monkeypatch.setattr(attention._Heads, "_all_at_once", lambda *_: True)  # pyright: ignore[reportPrivateUsage]
    setting = replace(SETTING, block_tokens=tokens)
    compare(interpreter, _case([1, 1, 1], [1, 31, 17], 4, 4, (0, 0.0, True), (8, tokens)), setting)


def test_decoding_rows_whole(interpreter: Interpreter) -> None:
    few = replace(SETTING.accelerator, sizes={**SETTING.accelerator.sizes, "units": nominal(1, "1", "one")})
    compare(interpreter, _case([1, 1, 1], [1, 31, 17], 4, 4, (5, 0.0, False)), replace(SETTING, accelerator=few))


@pytest.mark.parametrize("style", STYLES)
def test_chunks_and_decoding_rows(interpreter: Interpreter, style: tuple[int, float, bool]) -> None:
    compare(interpreter, _case([1, 1, 9, 2, 7], [30, 3, 26, 2, 7], 24, 8, style))


@pytest.mark.parametrize(("count", "style"), [(2, STYLES[3]), *((5, style) for style in STYLES)])
def test_chunks_by_shares_of_their_keys(
    interpreter: Interpreter, monkeypatch: pytest.MonkeyPatch, count: int, style: tuple[int, float, bool]
) -> None:
    """Some shares have no key, and some rows see none of a share."""
    monkeypatch.setattr(attention, "chunk_shares", lambda *_: count)
    compare(interpreter, _case([1, 1, 9, 2, 7], [30, 3, 26, 2, 7], 24, 8, style))


@pytest.mark.parametrize("lengths", [[31, 1, 1, 1], [1, 1, 30, 2], [7, 7, 7, 7]])
@pytest.mark.parametrize("count", [1, 3])
def test_decoding_rows_of_unequal_contexts(
    interpreter: Interpreter, monkeypatch: pytest.MonkeyPatch, lengths: list[int], count: int
) -> None:
    tiles = attention.split_tiles(SETTING, "f32", KV_HEADS, 8, 4)
    monkeypatch.setattr(attention, "split_tiles", lambda *_: structs.replace(tiles, shares=count))
    compare(interpreter, _case([1, 1, 1, 1], lengths, 4, 4, (5, 0.0, True)))
    if count > 1:
        compare(interpreter, _case([1, 1, 1, 1], lengths, 4, 4))


def test_few_rows_are_cut_into_shares() -> None:
    """Units that would have nothing to do are the reason; many rows are not cut."""
    hopper = replace(SETTING, accelerator=ACCELERATORS["h200"], block_tokens=64, blocks_per_sequence=2048, max_rows=2048)
    found = {rows: chunk_shares(hopper, rows // 4, rows) for rows in (64, 128, 256, 512, 768, 1024, 2048)}
    assert found == {64: 8, 128: 4, 256: 2, 512: 1, 768: 2, 1024: 1, 2048: 1}
    assert chunk_shares(replace(hopper, blocks_per_sequence=8), 16, 64) == 1


def test_chunks_on_hopper_are_for_heads_that_its_copies_take() -> None:
    hopper = replace(SETTING, accelerator=ACCELERATORS["h200"], block_tokens=64)
    assert [tiles.tokens for tiles in hopper_chunk_tiles(hopper, "bf16", 128, 4, True)] == [128, 64]
    assert [tiles.tokens for tiles in hopper_chunk_tiles(hopper, "f16", 128, 2, True)] == [64]
    for setting, dtype, width, group, aligned in (
        (hopper, "f32", 128, 4, True),
        (hopper, "bf16", 96, 4, True),
        (hopper, "bf16", 128, 128, True),
        (hopper, "bf16", 128, 4, False),
        (replace(hopper, block_tokens=4), "bf16", 128, 4, True),
        (replace(hopper, accelerator=ACCELERATORS["b200"]), "bf16", 128, 4, True),
    ):
        assert hopper_chunk_tiles(setting, dtype, width, group, aligned) == ()


@pytest.mark.parametrize("style", [STYLES[0], STYLES[3]])
def test_chunks_by_descriptors(interpreter: Interpreter, style: tuple[int, float, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "chunk_tiles", lambda *_: Tiles(32, 16, 4, 2, described=True))
    setting = replace(SETTING, block_tokens=16)
    compare(interpreter, _case([1, 9, 2], [30, 86, 2], 16, 8, style, (16, 16)), setting)
