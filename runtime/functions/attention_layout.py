"""What an attention step does with its rows, worked out on the host once a step and used by every layer.

Decode sequences of like length are batched through one gather with a padding mask; every other sequence is cut into
blocks of query rows, each against segments of keys whose partial results are merged by their log-sum-exp.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

import numpy as np
import torch
from numpy.typing import NDArray

QUERY_ROWS = 1024
# With a window segments carry masks, with a soft cap scores are held: fewer rows and keys at a time.
WINDOW_QUERY_ROWS = 256
MASK_ELEMENTS = 1 << 18
# A decode batch may gather this many times the tokens it needs; past that, splitting the batch is cheaper.
PADDING_ALLOWED = 1.5

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Keys:
    """Tokens of the cache in order: a run (`start`, `count`) when they lie side by side, else gathered by `indices`."""

    count: int
    start: int
    indices: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class DecodeBatch:
    """`rows` (a run or indices) against `longest` keys each; `mask`[n, 1, 1, longest] is None when all are that long."""

    first: int
    count: int
    rows: torch.Tensor | None
    longest: int
    keys: Keys
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Segment:
    """Keys for a query block. Rows of the block from `blind_from` on see none of them."""

    keys: Keys
    causal: bool
    mask: torch.Tensor | None
    blind_from: int


@dataclass(frozen=True, slots=True)
class QueryBlock:
    first: int
    stop: int
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Geometry:
    """`window` 0 is none; `chunk_tokens` is how many keys one gather may hold; `holds_scores`: scores are written to memory."""

    block_tokens: int
    window: int
    chunk_tokens: int
    dtype: torch.dtype
    holds_scores: bool = False


@dataclass(frozen=True, slots=True)
class Gathered:
    """Where gathered tokens go, as rows [tokens, kv heads * D] and as [sequences, kv heads, tokens, D]."""

    k: torch.Tensor
    v: torch.Tensor
    k_heads: torch.Tensor
    v_heads: torch.Tensor


class Layout:
    """The work of one step; `refresh` reads the step inputs when the step has changed."""

    def __init__(
        self,
        geometry: Geometry,
        starts: torch.Tensor,
        lengths: torch.Tensor,
        tables: torch.Tensor,
        counts: torch.Tensor,
    ) -> None:
        self._geometry = geometry
        self._starts, self._lengths = starts.numpy(), lengths.numpy()
        self._tables, self._counts = tables.numpy(), counts.numpy()
        self._step = -1
        self._masks: dict[tuple[int, int, int], torch.Tensor] = {}
        self._gathered: dict[tuple[int, tuple[int, int]], Gathered] = {}
        self.decode: list[DecodeBatch] = []
        self.blocks: list[QueryBlock] = []
        self.rows = 0

    def refresh(self, step: int) -> None:
        if self._step == step:
            return
        self._step = step
        self._masks.clear()
        self._gathered.clear()
        self.rows, decode_rows, sequences, _ = (int(count) for count in self._counts)
        self.decode, self.blocks = [], []
        self._add_decode(decode_rows)
        for sequence in range(decode_rows, sequences):
            self._add_sequence(sequence)

    def gathered(self, keys: Keys, sequences: int, heads: tuple[int, int], space: torch.Tensor) -> Gathered:
        """Windows on the gather space [2, tokens, kv heads * D] for some keys; layers of one geometry share them."""
        found = self._gathered.get((id(keys), heads))
        if found is None:
            k, v = space[0, : keys.count], space[1, : keys.count]
            shape = (sequences, keys.count // sequences, *heads)
            found = Gathered(k, v, k.view(shape).transpose(1, 2), v.view(shape).transpose(1, 2))
            self._gathered[id(keys), heads] = found
        return found

    def _token_indices(self, sequence: int, start: int, stop: int) -> Indices:
        size = self._geometry.block_tokens
        table = self._tables[sequence, start // size : (stop - 1) // size + 1].astype(np.int64)
        within = (table[:, None] * size + np.arange(size)).reshape(-1)
        skip = start % size
        return within[skip : skip + stop - start]

    def _keys(self, sequence: int, start: int, stop: int) -> Keys:
        indices = self._token_indices(sequence, start, stop)
        first = int(indices[0])
        if int(indices[-1]) - first == len(indices) - 1 and bool((np.diff(indices) == 1).all()):
            return Keys(len(indices), first, None)
        return Keys(len(indices), 0, torch.from_numpy(indices))

    def _first_visible(self, position: int) -> int:
        window = self._geometry.window
        return max(0, position - window + 1) if window else 0

    def _add_decode(self, count: int) -> None:
        if count == 0:
            return
        lengths = self._lengths[:count].astype(np.int64)
        window = self._geometry.window
        visible = np.minimum(lengths, window) if window else lengths
        order = np.argsort(visible, kind="stable")
        group: list[int] = []
        total = 0
        for sequence in order.tolist():
            longest = int(visible[sequence])
            if longest > self._geometry.chunk_tokens:
                self._add_sequence(sequence)
                continue
            padded = longest * (len(group) + 1)
            if group and (padded > PADDING_ALLOWED * (total + longest) or padded > self._geometry.chunk_tokens):
                self.decode.append(self._decode_batch(sorted(group), visible))
                group, total = [], 0
            group.append(sequence)
            total += longest
        if group:
            self.decode.append(self._decode_batch(sorted(group), visible))

    def _decode_batch(self, group: list[int], visible: Indices) -> DecodeBatch:
        first, count = group[0], len(group)
        rows = None if group[-1] - first == count - 1 else torch.tensor(group)
        wanted = visible[group]
        longest = int(wanted.max())
        if count == 1:
            stop = int(self._lengths[first])
            return DecodeBatch(first, 1, None, longest, self._keys(first, stop - longest, stop), None)
        places = np.arange(longest)
        # padding repeats the sequence's last token: masked, but never an uninitialised cache slot
        steps = np.minimum(places, wanted[:, None] - 1)
        tokens = (self._lengths[group].astype(np.int64) - wanted)[:, None] + steps
        size = self._geometry.block_tokens
        table = self._tables[group]
        indices = np.take_along_axis(table, tokens // size, 1).astype(np.int64) * size + tokens % size
        mask = None
        if int(wanted.min()) < longest:
            hidden = torch.from_numpy(places >= wanted[:, None])
            mask = torch.zeros(count, longest, dtype=self._geometry.dtype).masked_fill_(hidden, -torch.inf)
            mask = mask.view(count, 1, 1, longest)
        keys = Keys(count * longest, 0, torch.from_numpy(indices.reshape(-1)))
        return DecodeBatch(first, count, rows, longest, keys, mask)

    def _add_sequence(self, sequence: int) -> None:
        first, stop = int(self._starts[sequence]), int(self._starts[sequence + 1])
        before = int(self._lengths[sequence]) - (stop - first)
        most, _ = self._block_size()
        for a in range(first, stop, most):
            b = min(a + most, stop)
            segments = self._segments(sequence, before + a - first, before + b - first)
            self.blocks.append(QueryBlock(a, b, segments))

    def _block_size(self) -> tuple[int, int]:
        """Most query rows of a block and most keys of a segment; the keys of a block's own rows always are one segment."""
        chunk = self._geometry.chunk_tokens
        if not self._geometry.window and not self._geometry.holds_scores:
            return min(QUERY_ROWS, chunk), chunk
        rows = min(WINDOW_QUERY_ROWS, chunk, isqrt(MASK_ELEMENTS))
        return rows, min(chunk, MASK_ELEMENTS // rows)

    def _segments(self, sequence: int, start: int, stop: int) -> tuple[Segment, ...]:
        """Key segments for query positions [start, stop)."""
        rows, low = stop - start, self._first_visible(start)
        _, chunk = self._block_size()
        if stop - low <= chunk and rows * (stop - low) <= MASK_ELEMENTS:
            return (self._segment(sequence, start, stop, low, stop),)
        earlier = [self._segment(sequence, start, stop, s, min(s + chunk, start)) for s in range(low, start, chunk)]
        return (*earlier, self._segment(sequence, start, stop, start, stop))

    def _segment(self, sequence: int, start: int, stop: int, s: int, e: int) -> Segment:
        """Keys [s, e) for query positions [start, stop)."""
        rows, window = stop - start, self._geometry.window
        keys = self._keys(sequence, s, e)
        cut = bool(window) and stop - s > window
        if not cut and e <= start + 1:
            return Segment(keys, False, None, rows)
        if not cut and s == start and e == stop:
            return Segment(keys, True, None, rows)
        blind_from = max(0, min(rows, e + window - 1 - start)) if window else rows
        return Segment(keys, False, self._mask(rows, s - start, e - s), blind_from)

    def _mask(self, rows: int, offset: int, keys: int) -> torch.Tensor:
        """[rows, keys]: row i sees key j (at position j + offset relative to row 0) when 0 <= i - (j + offset) < window."""
        found = self._masks.get((rows, offset, keys))
        if found is None:
            distance = torch.arange(rows).unsqueeze(1) - (torch.arange(keys) + offset)
            hidden = distance < 0
            if self._geometry.window:
                hidden |= distance >= self._geometry.window
            found = torch.zeros(rows, keys, dtype=self._geometry.dtype).masked_fill_(hidden, -torch.inf)
            self._masks[rows, offset, keys] = found
        return found
