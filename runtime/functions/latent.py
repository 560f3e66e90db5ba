"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434) over a paged cache of latents."""

from __future__ import annotations

import torch

from .attention import attention
from .base import Launch, Operands
from .kv import slots_of


def latent_kv_write(operands: Operands) -> Launch:
    """(latent[R, r], k_rope[R, d], slot_mapping[R] i64) -> cache[blocks, block_tokens, 1, r + d]: row r goes to token
    slot_mapping[r] of the cache, the latent first; -1 writes nothing. The rest of the cache stays as it is."""
    (latent, k_rope, slot_mapping), (cache,) = operands.take(3, 1)
    operands.typed(torch.int64, slot_mapping)
    operands.floating(latent, k_rope, cache)
    rows = latent.ndim == k_rope.ndim == 2 and len(latent) == len(k_rope)
    operands.require(rows, "latent[R, r] and k_rope[R, d]")
    operands.shaped(slot_mapping, len(latent))
    _check_cache(operands, cache, latent.shape[1] + k_rope.shape[1])
    context, slots = operands.context, slots_of(operands.context, slot_mapping)
    tokens = cache.flatten(0, 2)
    places = (tokens[:, : latent.shape[1]], latent), (tokens[:, latent.shape[1] :], k_rope)

    def run() -> None:
        slots.refresh(context.step)
        for place, source in places:
            place.index_copy_(0, slots.slots, source if slots.rows is None else source[slots.rows])

    return run


def latent_attention(operands: Operands) -> Launch:
    """(q_nope[R, h, n], q_rope[R, h, d], kv_b[h (n + v), r], cache[blocks, block_tokens, 1, r + d], sequence_starts[S+1],
    context_lengths[S], block_tables[S, blocks], counts[4]) -> out[R, h, v]. Causal, by absolute position.

    A head's keys are the first n rows of its part of kv_b times the latent, then the rotated key; its values are the other v rows
    times the latent. Neither is made: queries are taken into latent space by the first, results out of it by the second, and all
    heads attend to the cached rows themselves. `scale` multiplies the scores. Rows past counts[0] are undefined.
    """
    (q_nope, q_rope, kv_b, cache, *step), (out,) = operands.take(8, 1)
    operands.floating(q_nope, q_rope, kv_b, cache, out)
    operands.require(q_nope.ndim == q_rope.ndim == out.ndim == 3 and kv_b.ndim == 2, "q_nope, q_rope, out [R, h, .] and kv_b")
    rows, heads, nope = q_nope.shape
    values, latent = out.shape[2], kv_b.shape[1]
    fits = q_rope.shape[:2] == out.shape[:2] == (rows, heads) and len(kv_b) == heads * (nope + values)
    operands.require(fits, "as many rows and heads everywhere, and kv_b[h (n + v), r]")
    width = latent + q_rope.shape[2]
    _check_cache(operands, cache, width)
    context = operands.context
    queries = context.scratch("latent queries", q_nope.dtype, rows * heads * width).view(rows, heads, width)
    results = context.scratch("latent results", q_nope.dtype, rows * heads * width).view(rows, heads, width)
    of_head = kv_b.view(heads, nope + values, latent)
    keys, made = of_head[:, :nope], of_head[:, nope:].transpose(1, 2)
    given = Operands(
        operands.function,
        [queries, cache, cache, *step],
        [results],
        {"scale": operands.number("scale")},
        context,
        operands.label,
        operands.layer,
    )
    attend = attention(given)

    def run() -> None:
        queries[..., :latent] = torch.bmm(q_nope.transpose(0, 1), keys).transpose(0, 1)
        queries[..., latent:] = q_rope
        attend()
        out.copy_(torch.bmm(results[..., :latent].transpose(0, 1), made).transpose(0, 1))

    return run


def _check_cache(operands: Operands, cache: torch.Tensor, width: int) -> None:
    paged = cache.ndim == 4 and cache.shape[2:] == (1, width) and cache.is_contiguous()
    operands.require(paged and min(cache.shape) > 0, "a cache [blocks, block_tokens, 1, r + d]")
