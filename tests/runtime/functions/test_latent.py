"""Latent attention over its paged cache, against keys and values expanded from the latents in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenspeed.plans.errors import PlanError
from tokenspeed.runtime.functions.base import Context

from .calling import bind, call, error, poisoned, random

HEADS, NOPE, ROTATED, LATENT, VALUES, BLOCK = 3, 5, 4, 6, 7, 4
SCALE = 0.4


def expected(q: torch.Tensor, latent: torch.Tensor, k_rope: torch.Tensor, kv_b: torch.Tensor) -> torch.Tensor:
    """The last rows q[rows, heads, nope + d] of a sequence over all of it."""
    q, latent, k_rope, kv_b = (tensor.double() for tensor in (q, latent, k_rope, kv_b))
    expanded = (latent @ kv_b.T).view(len(latent), HEADS, NOPE + VALUES)
    k = torch.cat([expanded[..., :NOPE], k_rope[:, None].expand(-1, HEADS, -1)], -1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * SCALE
    ahead = torch.arange(len(latent))[None, :] > torch.arange(len(latent) - len(q), len(latent))[:, None]
    return torch.einsum("hqk,khv->qhv", scores.masked_fill(ahead, -math.inf).softmax(-1), expanded[..., NOPE:])


def step_inputs(contexts: list[int], rows: list[int], blocks: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The inputs of an attention step, and each sequence's slots, over shuffled blocks."""
    order = torch.randperm(blocks, generator=torch.Generator().manual_seed(1)).int()
    tables, used, slots = torch.full((len(contexts), blocks), -7, dtype=torch.int32), 0, []
    for sequence, context in enumerate(contexts):
        count = -(-context // BLOCK)
        tables[sequence, :count] = order[used : used + count]
        used += count
        positions = torch.arange(context)
        slots.append(tables[sequence][positions // BLOCK].long() * BLOCK + positions % BLOCK)
    starts = torch.tensor([0, *torch.tensor(rows).cumsum(0).tolist()], dtype=torch.int32)
    decode = rows.index(next((row for row in rows if row > 1), -1)) if max(rows) > 1 else len(rows)
    counts = torch.tensor([sum(rows), decode, len(rows), 0], dtype=torch.int32)
    return [starts, torch.tensor(contexts, dtype=torch.int32), tables, counts], slots


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 19), max_size=3),
    st.lists(st.tuples(st.integers(0, 11), st.integers(2, 9)), max_size=2),
    st.integers(0, 50),
)
def test_latent_attention_is_attention_over_expanded_latents(decode: list[int], chunks: list[tuple[int, int]], seed: int) -> None:
    if not decode and not chunks:
        return
    contexts = decode + [before + rows for before, rows in chunks]
    rows = [1] * len(decode) + [rows for _, rows in chunks]
    blocks = sum(-(-context // BLOCK) for context in contexts) + 1
    step, slots = step_inputs(contexts, rows, blocks)
    latents = [random(context, LATENT, seed=seed + n) for n, context in enumerate(contexts)]
    keys = [random(context, ROTATED, seed=seed + 10 + n) for n, context in enumerate(contexts)]
    kv_b = random(HEADS * (NOPE + VALUES), LATENT, seed=seed + 20) * LATENT**-0.5
    q = random(sum(rows), HEADS, NOPE + ROTATED, seed=seed + 21)

    cache = poisoned(blocks, BLOCK, 1, LATENT + ROTATED)
    call("latent_kv_write", [torch.cat(latents), torch.cat(keys), torch.cat(slots)], [cache])
    out = poisoned(sum(rows), HEADS, VALUES)
    # windows on one tensor of heads, as the split of a projection gives them
    call("latent_attention", [q[..., :NOPE], q[..., NOPE:], kv_b, cache, *step], [out], scale=SCALE)
    first = 0
    for count, latent, key in zip(rows, latents, keys, strict=True):
        assert error(out[first : first + count], expected(q[first : first + count], latent, key, kv_b)) < 1e-5
        first += count


def test_rows_without_a_slot_are_not_written() -> None:
    cache = poisoned(2, BLOCK, 1, LATENT + ROTATED)
    latent, key = random(3, LATENT), random(3, ROTATED, seed=1)
    call("latent_kv_write", [latent, key, torch.tensor([5, -1, 2])], [cache])
    flat = cache.view(-1, LATENT + ROTATED)
    assert torch.equal(flat[5], torch.cat([latent[0], key[0]])) and torch.equal(flat[2], torch.cat([latent[2], key[2]]))
    assert torch.isnan(flat[[0, 1, 3, 4, 6, 7]]).all()


def test_a_second_step_reads_its_own_inputs() -> None:
    context, kv_b = Context(), random(HEADS * (NOPE + VALUES), LATENT, seed=4)
    latent, key, q = random(6, LATENT), random(6, ROTATED, seed=1), random(1, HEADS, NOPE + ROTATED, seed=2)
    step, (slots,) = step_inputs([5], [1], 3)
    cache, out = poisoned(3, BLOCK, 1, LATENT + ROTATED), poisoned(1, HEADS, VALUES)
    call("latent_kv_write", [latent[:5], key[:5], slots], [cache])
    context.step = 1
    launch = bind("latent_attention", [q[..., :NOPE], q[..., NOPE:], kv_b, cache, *step], [out], context, scale=SCALE)
    launch()
    assert error(out, expected(q, latent[:5], key[:5], kv_b)) < 1e-5
    context.step = 2
    step[1][0] = 3
    q.copy_(random(1, HEADS, NOPE + ROTATED, seed=9))
    launch()
    assert error(out, expected(q, latent[:3], key[:3], kv_b)) < 1e-5


def test_bf16_stays_close() -> None:
    step, slots = step_inputs([9], [9], 4)
    made = [random(9, LATENT), random(9, ROTATED, seed=1), random(HEADS * (NOPE + VALUES), LATENT, seed=2) * LATENT**-0.5]
    latent, key, kv_b = (tensor.bfloat16() for tensor in made)
    q = random(9, HEADS, NOPE + ROTATED, seed=3).bfloat16()
    cache = poisoned(4, BLOCK, 1, LATENT + ROTATED, dtype=torch.bfloat16)
    call("latent_kv_write", [latent, key, slots[0]], [cache])
    out = poisoned(9, HEADS, VALUES, dtype=torch.bfloat16)
    call("latent_attention", [q[..., :NOPE], q[..., NOPE:], kv_b, cache, *step], [out], scale=SCALE)
    assert error(out, expected(q, latent, key, kv_b)) < 0.05


def test_wrong_operands_are_refused() -> None:
    step, slots = step_inputs([4], [4], 2)
    cache = poisoned(2, BLOCK, 1, LATENT + ROTATED)
    q, kv_b, out = random(4, HEADS, NOPE + ROTATED), random(HEADS * (NOPE + VALUES), LATENT), poisoned(4, HEADS, VALUES)
    q_nope, q_rope = q[..., :NOPE], q[..., NOPE:]
    for inputs in (
        [q_nope[:, :2], q_rope, kv_b, cache, *step],
        [q_nope, q_rope, kv_b[:-1], cache, *step],
        [q_nope, q_rope, kv_b, cache[..., :-1], *step],
        [q_nope, q_rope, kv_b.bfloat16(), cache, *step],
    ):
        with pytest.raises(PlanError):
            bind("latent_attention", inputs, [out], scale=SCALE)
    for inputs in (
        [random(4, LATENT), random(3, ROTATED), slots[0]],
        [random(4, LATENT + 1), random(4, ROTATED), slots[0]],
        [random(4, LATENT), random(4, ROTATED), slots[0].int()],
    ):
        with pytest.raises(PlanError):
            bind("latent_kv_write", inputs, [cache])
