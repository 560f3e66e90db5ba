"""Paged grouped-query attention through torch's CPU flash attention, with bounded scratch."""

from __future__ import annotations

import torch

from .attention_layout import DecodeBatch, Geometry, Keys, Layout, QueryBlock, Segment
from .base import Launch, Operands

# Gathered keys and values of one call, together. Part of a plan's `workspace`.
ATTENTION_SCRATCH_BYTES = 32 << 20

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


def attention(operands: Operands) -> Launch:
    """(q[R, h, D], k_cache[blocks, block_tokens, kvh, D], v_cache, sequence_starts[S+1], context_lengths[S],
    block_tables[S, blocks], counts[4]) -> out[R, h, D]. Causal, by absolute position.

    The rows of a sequence are the last positions of its context. `scale` multiplies the scores; with `window` w > 0, token
    i sees token j when 0 <= i - j < w. Rows past counts[0] are left as they are. h is a multiple of kvh.
    """
    (q, k_cache, v_cache, starts, lengths, tables, counts), (out,) = operands.take(7, 1)
    scale, window = operands.number("scale"), operands.integer("window", 0)
    _check(operands, window)
    kv_heads, head_dim = k_cache.shape[2:]
    fit = ATTENTION_SCRATCH_BYTES // (2 * kv_heads * head_dim * q.element_size())
    chunk = max(1, min(fit, k_cache.shape[0] * k_cache.shape[1] * 2))
    geometry = Geometry(k_cache.shape[1], window, chunk, q.dtype)
    key = ("attention", geometry, *(t.data_ptr() for t in (starts, lengths, tables, counts)))
    layout = operands.context.shared(key, Layout, lambda: Layout(geometry, starts, lengths, tables, counts))
    gather = operands.context.scratch("attention keys", q.dtype, 2 * chunk * kv_heads * head_dim)
    paged = PagedHeads(q, out, k_cache, v_cache, gather.view(2, chunk, kv_heads * head_dim), scale, layout)
    context = operands.context

    def run() -> None:
        layout.refresh(context.step)
        for batch in layout.decode:
            paged.decode(batch)
        for block in layout.blocks:
            paged.attend(block)

    return run


def _check(operands: Operands, window: int) -> None:
    (q, k_cache, v_cache, starts, lengths, tables, counts), (out,) = operands.inputs, operands.outputs
    operands.floating(q, k_cache, v_cache, out)
    operands.typed(torch.int32, starts, lengths, tables, counts)
    operands.require(q.ndim == 3 and q.stride(2) == 1 and q.shape == out.shape, "q[R, h, D] and an output of its shape")
    paged = k_cache.ndim == 4 and k_cache.shape == v_cache.shape and k_cache.is_contiguous() and v_cache.is_contiguous()
    operands.require(paged and min(k_cache.shape) > 0, "two caches [blocks, block_tokens, kv heads, D]")
    operands.require(k_cache.shape[3] == q.shape[2] and q.shape[1] % k_cache.shape[2] == 0, "heads a multiple of kv heads")
    operands.require(tables.ndim == 2 and lengths.ndim == 1 and starts.ndim == 1, "the step inputs of attention")
    operands.require(len(starts) == len(lengths) + 1 and len(tables) == len(lengths), "the step inputs of attention")
    operands.shaped(counts, 4)
    operands.require(window >= 0, "a window of 0 (none) or more")


class PagedHeads:
    """One layer's queries, caches and output."""

    def __init__(
        self,
        q: torch.Tensor,
        out: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        gather: torch.Tensor,
        scale: float,
        layout: Layout,
    ) -> None:
        self._q, self._out, self._gather, self._scale, self._layout = q, out, gather, scale, layout
        self._heads: tuple[int, int] = (k_cache.shape[2], k_cache.shape[3])
        self._k, self._v = (cache.flatten(0, 1).flatten(1) for cache in (k_cache, v_cache))
        # [1, kv heads, tokens, D]: runs of tokens are windows on these
        self._k_runs, self._v_runs = (cache.flatten(0, 1).transpose(0, 1).unsqueeze(0) for cache in (k_cache, v_cache))
        self._decode_rows: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def _fetch(self, keys: Keys, sequences: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values as [sequences, kv heads, tokens, D]."""
        if keys.indices is None:
            return self._k_runs.narrow(2, keys.start, keys.count), self._v_runs.narrow(2, keys.start, keys.count)
        windows = self._layout.gathered(keys, sequences, self._heads, self._gather)
        torch.index_select(self._k, 0, keys.indices, out=windows.k)
        torch.index_select(self._v, 0, keys.indices, out=windows.v)
        return windows.k_heads, windows.v_heads

    def decode(self, batch: DecodeBatch) -> None:
        k, v = self._fetch(batch.keys, batch.count)
        if batch.rows is None:
            q, out = self._decode_run(batch.first, batch.count)
            out.copy_(_flash(q, k, v, 0.0, False, attn_mask=batch.mask, scale=self._scale)[0])
        else:
            q = self._q[batch.rows].unsqueeze(2)
            result = _flash(q, k, v, 0.0, False, attn_mask=batch.mask, scale=self._scale)[0]
            self._out[batch.rows] = result.squeeze(2)

    def _decode_run(self, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and output of neighbouring decode rows as [count, h, 1, D], kept from step to step."""
        found = self._decode_rows.get((first, count))
        if found is None:
            rows = slice(first, first + count)
            found = self._decode_rows[first, count] = self._q[rows].unsqueeze(2), self._out[rows].unsqueeze(2)
        return found

    def attend(self, block: QueryBlock) -> None:
        q = self._q[block.first : block.stop].transpose(0, 1).unsqueeze(0)
        result, weight = self._partial(q, block.segments[0])
        if len(block.segments) > 1:
            result = result.float()
            for segment in block.segments[1:]:
                part, part_weight = self._partial(q, segment)
                total = torch.logaddexp(weight, part_weight)
                result = result * _share(weight, total) + part.float() * _share(part_weight, total)
                weight = total
        self._out[block.first : block.stop] = result[0].transpose(0, 1)

    def _partial(self, q: torch.Tensor, segment: Segment) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention over one segment, and the log-sum-exp of its scores (minus infinity where a row sees none of it)."""
        k, v = self._fetch(segment.keys, 1)
        result, weight = _flash(q, k, v, 0.0, segment.causal, attn_mask=segment.mask, scale=self._scale)
        if segment.blind_from < q.shape[2]:
            weight[:, :, segment.blind_from :] = -torch.inf
            result[:, :, segment.blind_from :] = 0
        return result, weight


def _share(part: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    # a row that has seen nothing yet has both at minus infinity: its share is 0, not NaN
    return torch.where(torch.isinf(part), 0.0, torch.exp(part - total)).unsqueeze(-1)
