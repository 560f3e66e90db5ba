"""Paged attention against a float64 reference: ragged lengths, block edges, windows, padding, chunked scratch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenspeed.runtime.functions import attention, attention_layout
from tokenspeed.runtime.functions.base import Context, Launch

from .calling import bind, error, poisoned, random

SEQUENCES = 8


@dataclass
class Step:
    """One attention call: `decode` contexts of one row each, then (context, rows) of prefill chunks."""

    decode: list[int]
    prefill: list[tuple[int, int]]
    heads: tuple[int, int] = (4, 2)
    head_dim: int = 8
    block_tokens: int = 4
    window: int = 0
    padded: int = 0
    dtype: torch.dtype = torch.float32
    shuffle: bool = True
    softcap: float = 0.0
    sinks: bool = False

    def __post_init__(self) -> None:
        contexts = self.decode + [context for context, _ in self.prefill]
        self.rows_of = [1] * len(self.decode) + [rows for _, rows in self.prefill]
        self.rows = sum(self.rows_of)
        needed = [math.ceil(context / self.block_tokens) for context in contexts]
        blocks = sum(needed) + 2
        order = np.random.default_rng(3).permutation(blocks) if self.shuffle else np.arange(blocks)
        self.tables = torch.full((SEQUENCES, max(needed, default=0) + 1), -7, dtype=torch.int32)
        self.contexts, self.blocks, used = contexts, blocks, 0
        for sequence, count in enumerate(needed):
            self.tables[sequence, :count] = torch.from_numpy(order[used : used + count].astype(np.int32))
            used += count
        self.keys = [
            random(context, self.heads[1], self.head_dim, seed=i, dtype=self.dtype) for i, context in enumerate(contexts)
        ]
        self.values = [
            random(context, self.heads[1], self.head_dim, seed=50 + i, dtype=self.dtype) for i, context in enumerate(contexts)
        ]
        self.q = random(self.rows + self.padded, self.heads[0], self.head_dim, seed=99, dtype=self.dtype)
        self.caches = [poisoned(blocks, self.block_tokens, self.heads[1], self.head_dim, dtype=self.dtype) for _ in range(2)]
        for cache, source in zip(self.caches, (self.keys, self.values), strict=True):
            for sequence, tokens in enumerate(source):
                for position in range(len(tokens)):
                    block = int(self.tables[sequence, position // self.block_tokens])
                    cache[block, position % self.block_tokens] = tokens[position]

    def inputs(self) -> list[torch.Tensor]:
        starts, lengths = torch.zeros(SEQUENCES + 1, dtype=torch.int32), torch.zeros(SEQUENCES, dtype=torch.int32)
        count = len(self.contexts)
        starts[1 : count + 1] = torch.tensor(self.rows_of, dtype=torch.int32).cumsum(0)
        lengths[:count] = torch.tensor(self.contexts, dtype=torch.int32)
        counts = torch.tensor([self.rows, len(self.decode), count, 0], dtype=torch.int32)
        return [self.q, *self.caches, starts, lengths, self.tables, counts, *([self.sink] if self.sinks else [])]

    @property
    def sink(self) -> torch.Tensor:
        return 2 * random(self.heads[0], seed=7, dtype=self.dtype)

    def expected(self) -> torch.Tensor:
        results = []
        group = self.heads[0] // self.heads[1]
        first = 0
        for context, rows, keys, values in zip(self.contexts, self.rows_of, self.keys, self.values, strict=True):
            q = self.q[first : first + rows].double().transpose(0, 1)
            k = keys.double().repeat_interleave(group, 1).transpose(0, 1)
            v = values.double().repeat_interleave(group, 1).transpose(0, 1)
            distance = torch.arange(context - rows, context)[:, None] - torch.arange(context)
            hidden = distance < 0
            if self.window:
                hidden |= distance >= self.window
            scores = q @ k.transpose(1, 2) * self.head_dim**-0.5
            if self.softcap:
                scores = self.softcap * (scores / self.softcap).tanh()
            scores = scores.masked_fill(hidden, -math.inf)
            if self.sinks:
                scores = torch.cat([scores, self.sink.double()[:, None, None].expand(-1, rows, 1)], -1)
            results.append((scores.softmax(-1)[..., :context] @ v).transpose(0, 1))
            first += rows
        return torch.cat(results) if results else torch.zeros(0, self.heads[0], self.head_dim)

    def bound(self, out: torch.Tensor) -> Launch:
        context = Context()
        context.step = 1
        attributes = {"scale": self.head_dim**-0.5, "window": self.window, "softcap": self.softcap}
        return bind("attention", self.inputs(), [out], context, **attributes)

    def check(self, tolerance: float = 2e-6) -> None:
        out = poisoned(*self.q.shape, dtype=self.dtype)
        self.bound(out)()
        assert error(out[: self.rows], self.expected()) < tolerance
        assert out[self.rows :].isnan().all()


chunks = st.integers(1, 40).flatmap(lambda context: st.tuples(st.just(context), st.integers(1, context)))


@settings(max_examples=60, deadline=None)
@given(
    decode=st.lists(st.integers(1, 60), max_size=5),
    prefill=st.lists(chunks, max_size=3),
    heads=st.sampled_from([(4, 2), (9, 3), (1, 1), (5, 1), (3, 3)]),
    head_dim=st.sampled_from([8, 6, 64]),
    block_tokens=st.sampled_from([1, 4, 16]),
    window=st.sampled_from([0, 0, 1, 3, 16]),
    padded=st.integers(0, 2),
    shuffle=st.booleans(),
    scratch_tokens=st.sampled_from([None, 5, 17]),
    softcap=st.sampled_from([0.0, 0.0, 0.8, 30.0]),
    sinks=st.booleans(),
)
def test_attention(
    decode: list[int],
    prefill: list[tuple[int, int]],
    heads: tuple[int, int],
    head_dim: int,
    block_tokens: int,
    window: int,
    padded: int,
    shuffle: bool,
    scratch_tokens: int | None,
    softcap: float,
    sinks: bool,
) -> None:
    step = Step(decode, prefill, heads, head_dim, block_tokens, window, padded, torch.float32, shuffle, softcap, sinks)
    limit = attention.ATTENTION_SCRATCH_BYTES if scratch_tokens is None else scratch_tokens * heads[1] * head_dim * 8
    with mock.patch.object(attention, "ATTENTION_SCRATCH_BYTES", limit):
        step.check()


@pytest.mark.parametrize("window", [0, 7, 100])
@pytest.mark.parametrize(("softcap", "sinks"), [(0.0, False), (1.5, True)])
def test_long_chunks_are_cut_into_blocks_of_queries_and_segments_of_keys(window: int, softcap: float, sinks: bool) -> None:
    with (
        mock.patch.object(attention_layout, "QUERY_ROWS", 16),
        mock.patch.object(attention_layout, "WINDOW_QUERY_ROWS", 11),
        mock.patch.object(attention_layout, "MASK_ELEMENTS", 300),
        mock.patch.object(attention, "ATTENTION_SCRATCH_BYTES", 24 * 2 * 8 * 8),
    ):
        Step([130, 3], [(150, 61), (90, 90), (200, 5)], window=window, softcap=softcap, sinks=sinks).check()


def test_bfloat16() -> None:
    Step([5, 40], [(33, 20)], dtype=torch.bfloat16).check(0.03)
    Step([5, 40], [(33, 20)], dtype=torch.bfloat16, softcap=2.0, sinks=True).check(0.03)


def test_block_edges_and_single_tokens() -> None:
    for context in (1, 3, 4, 5, 8, 9):
        Step([context], [(context, 1), (context, context)]).check()


def test_sequences_of_unlike_length_are_not_padded_to_the_longest() -> None:
    step = Step([60, 1, 59, 2, 60], [])
    layout = attention_layout.Layout(attention_layout.Geometry(4, 0, 10_000, torch.float32), *step.inputs()[3:])
    layout.refresh(1)
    gathered = sum(batch.keys.count for batch in layout.decode)
    assert gathered <= attention_layout.PADDING_ALLOWED * sum(step.contexts)
    step.check()


def test_a_new_step_is_noticed_and_layers_share_the_layout() -> None:
    step, context = Step([9, 20], [(12, 4)]), Context()
    outs = [poisoned(*step.q.shape) for _ in range(2)]
    inputs = step.inputs()
    launches = [bind("attention", inputs, [out], context, scale=step.head_dim**-0.5) for out in outs]
    for length in (20, 17):
        context.step += 1
        inputs[4][1] = length
        for launch in launches:
            launch()
        assert torch.equal(*outs)
    shorter = Step([9, 20], [(12, 4)])
    shorter.contexts[1], shorter.keys[1], shorter.values[1] = 17, step.keys[1][:17], step.values[1][:17]
    assert error(outs[0], shorter.expected()) < 2e-6


def test_scratch_does_not_grow_with_the_context() -> None:
    step, context = Step([60], []), Context()
    launch = bind("attention", step.inputs(), [poisoned(*step.q.shape)], context, scale=1.0)
    before = context.scratch_bytes
    context.step = 1
    launch()
    assert context.scratch_bytes == before <= attention.ATTENTION_SCRATCH_BYTES
