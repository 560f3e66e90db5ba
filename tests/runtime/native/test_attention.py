"""Native paged attention against float64: ragged lengths, block edges, windows, caps, sinks, padding, poisoned caches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenspeed.plans.errors import PlanError

from ..functions.calling import error, poisoned, random
from .calling import MACHINES, Operand, call, on_every_machine

f32, bf16 = torch.float32, torch.bfloat16
SEQUENCES = 8
# Of bfloat16, beside the rounding of the result: weights are rounded before the second product.
TOLERANCES = {f32: 4e-6, bf16: 2e-2}


@dataclass
class Step:
    """One attention call: `decode` contexts of one row each, then (context, rows) of chunks."""

    decode: list[int]
    chunks: list[tuple[int, int]]
    heads: tuple[int, int] = (4, 2)
    head_dim: int = 64
    block_tokens: int = 64
    window: int = 0
    softcap: float = 0.0
    sinks: torch.dtype | None = None
    padded: int = 0
    dtype: torch.dtype = f32
    block_order: str = "token_major"

    def __post_init__(self) -> None:
        self.contexts = self.decode + [context for context, _ in self.chunks]
        self.rows_of = [1] * len(self.decode) + [rows for _, rows in self.chunks]
        self.rows = sum(self.rows_of)
        needed = [math.ceil(context / self.block_tokens) for context in self.contexts]
        blocks = sum(needed) + 2
        order = torch.from_numpy(np.random.default_rng(3).permutation(blocks).astype(np.int32))
        self.tables = torch.full((SEQUENCES, max(needed, default=0) + 1), 1 << 30, dtype=torch.int32)
        kv_heads, size = self.heads[1], self.head_dim
        self.keys = [random(n, kv_heads, size, seed=i, dtype=self.dtype) for i, n in enumerate(self.contexts)]
        self.values = [random(n, kv_heads, size, seed=50 + i, dtype=self.dtype) for i, n in enumerate(self.contexts)]
        # q and out are windows of wider rows
        whole = random(self.rows + self.padded, self.heads[0] + 2, size, seed=99, dtype=self.dtype)
        self.q = whole[:, 1:-1]
        self.caches = [self.cache(blocks) for _ in range(2)]
        used = 0
        for sequence, count in enumerate(needed):
            self.tables[sequence, :count] = order[used : used + count]
            used += count
            place = torch.arange(self.contexts[sequence])
            block = self.tables[sequence, place // self.block_tokens].long()
            for cache, source in zip(self.caches, (self.keys, self.values), strict=True):
                cache[block, place % self.block_tokens] = source[sequence]

    def cache(self, blocks: int) -> torch.Tensor:
        kv_heads, size = self.heads[1], self.head_dim
        if self.block_order == "head_major":
            return poisoned(blocks, kv_heads, self.block_tokens, size, dtype=self.dtype).transpose(1, 2)
        return poisoned(blocks, self.block_tokens, kv_heads, size, dtype=self.dtype)

    def inputs(self) -> list[Operand]:
        starts, lengths = torch.full((SEQUENCES + 1,), -9, dtype=torch.int32), torch.full((SEQUENCES,), -9, dtype=torch.int32)
        count = len(self.contexts)
        starts[0] = 0
        starts[1 : count + 1] = torch.tensor(self.rows_of, dtype=torch.int32).cumsum(0)
        lengths[:count] = torch.tensor(self.contexts, dtype=torch.int32)
        counts = torch.tensor([self.rows, len(self.decode), count, 0], dtype=torch.int32)
        return [self.q, *self.caches, starts, lengths, self.tables, counts, *self.sink_values()]

    def sink_values(self) -> list[torch.Tensor]:
        return [] if self.sinks is None else [2 * random(self.heads[0], seed=7, dtype=self.sinks)]

    def expected(self) -> torch.Tensor:
        results = [torch.zeros(0, self.heads[0], self.head_dim, dtype=torch.float64)]
        group, first = self.heads[0] // self.heads[1], 0
        for context, rows, keys, values in zip(self.contexts, self.rows_of, self.keys, self.values, strict=True):
            q = self.q[first : first + rows].double().transpose(0, 1)
            k, v = (x.double().repeat_interleave(group, 1).transpose(0, 1) for x in (keys, values))
            scores = q @ k.transpose(1, 2) * self.head_dim**-0.5
            if self.softcap:
                scores = self.softcap * torch.tanh(scores / self.softcap)
            distance = torch.arange(context - rows, context)[:, None] - torch.arange(context)
            hidden = (distance < 0) | ((distance >= self.window) if self.window else False)
            scores = scores.masked_fill(hidden, -math.inf)
            for sinks in self.sink_values():
                scores = torch.cat([scores, sinks.double()[:, None, None].expand(-1, rows, 1)], -1)
            results.append((scores.softmax(-1)[..., :context] @ v).transpose(0, 1))
            first += rows
        return torch.cat(results)

    def run(self, machine: str, threads: int = 2) -> torch.Tensor:
        out = poisoned(len(self.q), self.heads[0] + 1, self.head_dim, dtype=self.dtype)
        attributes = {"scale": self.head_dim**-0.5, "window": self.window, "softcap": self.softcap}
        call(machine, "attention", self.inputs(), [out[:, 1:]], threads, **attributes)
        assert out[:, 0].isnan().all() and out[self.rows :].isnan().all()
        return out[: self.rows, 1:]

    def check(self, machine: str, threads: int = 2) -> None:
        assert error(self.run(machine, threads), self.expected()) < TOLERANCES[self.dtype]


chunks = st.integers(1, 200).flatmap(lambda context: st.tuples(st.just(context), st.integers(1, context)))


@settings(max_examples=40, deadline=None)
@given(
    machine=st.sampled_from([*MACHINES]),
    dtype=st.sampled_from([f32, bf16]),
    threads=st.integers(1, 3),
    decode=st.lists(st.one_of(st.integers(1, 300), st.sampled_from([63, 64, 65, 128, 129, 700])), max_size=5),
    chunks=st.lists(st.one_of(chunks, st.sampled_from([(64, 64), (65, 64), (63, 1), (300, 300)])), max_size=3),
    heads=st.sampled_from([(4, 2), (9, 3), (1, 1), (5, 1), (3, 3), (7, 1), (16, 1)]),
    head_dim=st.sampled_from([8, 24, 64, 80, 128, 7]),
    block_tokens=st.sampled_from([64, 64, 64, 16, 4, 1]),
    window=st.sampled_from([0, 0, 1, 3, 16, 64, 100, 1000]),
    softcap=st.sampled_from([0.0, 0.0, 1.5]),
    sinks=st.sampled_from([None, f32, bf16]),
    padded=st.integers(0, 2),
    block_order=st.sampled_from(["token_major", "head_major"]),
)
def test_attention(
    machine: str,
    dtype: torch.dtype,
    threads: int,
    decode: list[int],
    chunks: list[tuple[int, int]],
    heads: tuple[int, int],
    head_dim: int,
    block_tokens: int,
    window: int,
    softcap: float,
    sinks: torch.dtype | None,
    padded: int,
    block_order: str,
) -> None:
    sinks = sinks if sinks == dtype else f32 if sinks is not None else None
    Step(decode, chunks, heads, head_dim, block_tokens, window, softcap, sinks, padded, dtype, block_order).check(
        machine, threads
    )


@on_every_machine
@pytest.mark.parametrize("dtype", [f32, bf16])
@pytest.mark.parametrize("head_dim", [64, 256])
def test_block_edges(machine: str, dtype: torch.dtype, head_dim: int) -> None:
    Step([63, 64, 65, 1], [(127, 127), (129, 3)], head_dim=head_dim, dtype=dtype).check(machine)
    Step([63, 64, 65, 1], [(127, 127), (129, 3)], head_dim=head_dim, dtype=dtype, window=64).check(machine)


@pytest.mark.parametrize("dtype", [f32, bf16])
def test_results_depend_on_neither_the_threads_nor_the_other_sequences(dtype: torch.dtype) -> None:
    """Long contexts are split across threads when they are few, and not when they are many."""
    for machine in MACHINES:
        step = Step([900, 40, 400], [(500, 70)], heads=(6, 2), dtype=dtype)
        found = [step.run(machine, threads) for threads in (1, 2, 3)]
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
        alone = Step([900], [], heads=(6, 2), dtype=dtype)
        alone.q = step.q[:1]
        assert torch.equal(alone.run(machine)[0], found[0][0])


@pytest.mark.parametrize("dtype", [f32, bf16])
@pytest.mark.parametrize("heads", [(9, 3), (8, 1)])
def test_the_order_of_blocks_in_memory_changes_no_bit(dtype: torch.dtype, heads: tuple[int, int]) -> None:
    for machine in MACHINES:
        token_major, head_major = (
            Step([700, 300, 5], [(130, 70)], heads, dtype=dtype, block_order=order) for order in ("token_major", "head_major")
        )
        assert torch.equal(token_major.run(machine), head_major.run(machine))


@on_every_machine
def test_large_scores(machine: str) -> None:
    for dtype in (f32, bf16):
        step = Step([70], [(150, 20)], dtype=dtype)
        step.q *= 200
        assert error(step.run(machine), step.expected()) < (1e-4 if dtype == f32 else 0.05)


def test_wrong_operands_are_refused() -> None:
    machine, step = next(iter(MACHINES)), Step([5], [])
    out = poisoned(1, 4, 64)
    q, k, v, starts, lengths, tables, counts = step.inputs()
    assert isinstance(k, torch.Tensor) and isinstance(v, torch.Tensor) and isinstance(tables, torch.Tensor)
    sinks = torch.zeros(3)
    for inputs in (
        [q, k, v, starts, lengths, tables],
        [q, k.transpose(0, 1), v, starts, lengths, tables, counts],
        [q, k, v.transpose(1, 2).contiguous().transpose(1, 2), starts, lengths, tables, counts],
        [q, k, k[:, :32], starts, lengths, tables, counts],
        [q, k.to(bf16), v, starts, lengths, tables, counts],
        [q, k, v, lengths, lengths, tables, counts],
        [q, k, v, starts, lengths, tables.long(), counts],
        [q, k, v, starts, lengths, tables, counts, sinks],
    ):
        with pytest.raises(PlanError):
            call(machine, "attention", inputs, [out], scale=1.0)
    with pytest.raises(PlanError):
        call(machine, "attention", step.inputs(), [out], scale=1.0, window=-1)
    with pytest.raises(PlanError):
        call(machine, "attention", step.inputs(), [out])
