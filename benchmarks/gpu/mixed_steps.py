"""Attention of steps that have everything: decoding rows, chunks from the start and from within, of many kinds of heads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .cases import BLOCK_TOKENS, BLOCKS_PER_SEQUENCE, MOST_DECODING, Case

SEQUENCES = ((1, 50), (1, 77), (9, 39), (130, 1130), (64, 64), (500, 500), (2, 700), (17, 1000))
"""Rows of each sequence and its tokens, those of one row first."""

_BEYOND = 10**6
"""Stands where a step has nothing; reading at it would fail."""


@dataclass(frozen=True)
class Kind:
    """An attention: width of a head, kv heads, heads to each of those; window, softcap (0: none), sinks."""

    width: int
    kv_heads: int
    group: int
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False

    def __str__(self) -> str:
        parts = [f"{self.kv_heads} x {self.group} heads of {self.width}"]
        parts += [f"window {self.window}"] * bool(self.window) + [f"softcap {self.softcap}"] * bool(self.softcap)
        return ", ".join([*parts, *["sinks"] * self.sinks])


KINDS = (
    Kind(128, 8, 4),
    Kind(128, 8, 4, window=100),
    Kind(128, 8, 4, window=200, softcap=3.0, sinks=True),
    Kind(128, 4, 8),
    Kind(128, 4, 7),
    Kind(128, 16, 2, window=1024, softcap=50.0),
    Kind(128, 32, 1),
    Kind(64, 8, 8, window=128, sinks=True),
    Kind(64, 3, 3),
    Kind(64, 12, 1),
    Kind(256, 4, 2),
)


def mixed_steps() -> Iterator[Case]:
    """A case for each kind."""
    return map(_case, KINDS)


def _case(kind: Kind) -> Case:
    heads, rows = kind.kv_heads * kind.group, sum(count for count, _ in SEQUENCES)
    q = f"tensor<?x{heads}x{kind.width}xbf16>"
    types = (q, *([f"tensor<{heads}xbf16>"] * kind.sinks))
    scores = f"scale = {kind.width**-0.5} : f64, softcap = {kind.softcap} : f64, window = {kind.window} : i64"
    segments = f"operandSegmentSizes = array<i32: 1, {int(kind.sinks)}>"
    attributes = f'kv_heads = {kind.kv_heads} : i64, layer = "0", {scores}, {segments}'
    operands = ", ".join(("%a0", "%a1")[: len(types)])
    line = f'%r = "ts.cached_attention"({operands}) {{{attributes}}} : ({", ".join(types)}) -> {q}'
    pairs = sum(count * (tokens - count) + count * (count + 1) / 2 for count, tokens in SEQUENCES)
    kept = 2.0 * 2 * kind.kv_heads * kind.width * sum(tokens for _, tokens in SEQUENCES)
    return Case(
        f"attention, mixed step, {kind}",
        rows,
        len(SEQUENCES),
        types,
        line,
        lambda: _operands(kind, rows),
        1,
        (1, 2),
        lambda given: [_reference(kind, given)],
        None,
        kept + 2.0 * 2 * rows * heads * kind.width,
        4.0 * pairs * heads * kind.width,
    )


def _operands(kind: Kind, rows: int) -> list[Tensor]:
    blocks = [-(-tokens // BLOCK_TOKENS) for _, tokens in SEQUENCES]
    shape = (sum(blocks) + 1, kind.kv_heads, BLOCK_TOKENS, kind.width)
    caches = [torch.randn(shape).bfloat16() for _ in range(2)]
    tables = torch.full((MOST_DECODING, BLOCKS_PER_SEQUENCE), _BEYOND, dtype=torch.int32)
    order, at = torch.randperm(sum(blocks)) + 1, 0
    for number, ((_, tokens), count) in enumerate(zip(SEQUENCES, blocks, strict=True)):
        tables[number, :count] = order[at : at + count]
        at += count
        if tokens % BLOCK_TOKENS:  # what lies beyond a context may be anything
            for cache in caches:
                cache[int(tables[number, count - 1]), :, tokens % BLOCK_TOKENS :] = torch.nan
    starts = torch.full((MOST_DECODING + 1,), _BEYOND, dtype=torch.int32)
    starts[: len(SEQUENCES) + 1] = torch.tensor([0, *(count for count, _ in SEQUENCES)]).cumsum(0)
    lengths = torch.full((MOST_DECODING,), _BEYOND, dtype=torch.int32)
    lengths[: len(SEQUENCES)] = torch.tensor([tokens for _, tokens in SEQUENCES])
    decoding = sum(count == 1 for count, _ in SEQUENCES)
    counts = torch.tensor([rows, decoding, len(SEQUENCES), len(SEQUENCES)], dtype=torch.int32)
    heads = kind.kv_heads * kind.group
    q, out = torch.randn(rows, heads, kind.width).bfloat16(), torch.full((rows, heads, kind.width), torch.nan).bfloat16()
    return [q, *caches, starts, lengths, tables, counts, *([torch.randn(heads).bfloat16()] * kind.sinks), out]


def _reference(kind: Kind, given: list[Tensor]) -> Tensor:
    q, tables, made = given[0].double(), given[5], []
    first = 0
    for number, (count, tokens) in enumerate(SEQUENCES):
        at = tables[number, : -(-tokens // BLOCK_TOKENS)].long()
        dense = (cache[at].transpose(0, 1).flatten(1, 2)[:, :tokens].double() for cache in given[1:3])
        keys, values = (item.repeat_interleave(kind.group, 0) for item in dense)
        scores = q[first : first + count].transpose(0, 1) @ keys.transpose(1, 2) * kind.width**-0.5
        if kind.softcap:
            scores = kind.softcap * torch.tanh(scores / kind.softcap)
        distance = torch.arange(tokens - count, tokens)[:, None] - torch.arange(tokens)
        seen = (distance >= 0) & (distance < (kind.window or tokens))
        scores = scores.masked_fill(~seen, -torch.inf)
        if kind.sinks:
            scores = torch.cat([scores, given[7].double()[:, None, None].expand(-1, count, 1)], -1)
        made.append((scores.softmax(-1)[..., :tokens] @ values).transpose(0, 1))
        first += count
    return torch.cat(made)
