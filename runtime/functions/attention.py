"""Paged grouped-query attention through torch's CPU flash attention (with a soft cap: matrix products), with bounded scratch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .attention_layout import DecodeBatch, Geometry, Keys, Layout, QueryBlock, Segment
from .base import Launch, Operands
from .capped_attention import capped_attention

# Gathered keys and values of one call, together. Part of a plan's `workspace`.
ATTENTION_SCRATCH_BYTES = 32 << 20

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


def attention(operands: Operands) -> Launch:
    """(q[R, h, D], k_cache[blocks, block_tokens, kvh, D], v_cache, sequence_starts[S+1], context_lengths[S],
    block_tables[S, blocks], counts[4][, sinks[h]]) -> out[R, h, D]. Causal, by absolute position.

    The rows of a sequence are the last positions of its context. `scale` multiplies the scores; `softcap` c > 0 makes each
    c * tanh(score / c); with `window` w > 0, token i sees token j when 0 <= i - j < w. A sink is one more logit of its head's
    softmax, without a value. Rows past counts[0] are left as they are. h is a multiple of kvh.
    """
    inputs, (out,) = operands.take(7, 1, optional=1)
    q, k_cache, v_cache, starts, lengths, tables, counts = inputs[:7]
    sinks = inputs[7].float() if len(inputs) == 8 else None
    scale, window, softcap = operands.number("scale"), operands.integer("window", 0), operands.number("softcap", 0.0)
    _check(operands, window, softcap)
    kv_heads, head_dim = k_cache.shape[2:]
    fit = ATTENTION_SCRATCH_BYTES // (2 * kv_heads * head_dim * q.element_size())
    chunk = max(1, min(fit, k_cache.shape[0] * k_cache.shape[1] * 2))
    geometry = Geometry(k_cache.shape[1], window, chunk, q.dtype, softcap > 0)
    key = ("attention", geometry, *(t.data_ptr() for t in (starts, lengths, tables, counts)))
    layout = operands.context.shared(key, Layout, lambda: Layout(geometry, starts, lengths, tables, counts))
    gather = operands.context.scratch("attention keys", q.dtype, 2 * chunk * kv_heads * head_dim)
    space = gather.view(2, chunk, kv_heads * head_dim)
    paged = PagedHeads(q, out, k_cache, v_cache, space, _Scores(scale, softcap, sinks), layout)
    context = operands.context

    def run() -> None:
        layout.refresh(context.step)
        for batch in layout.decode:
            paged.decode(batch)
        for block in layout.blocks:
            paged.attend(block)

    return run


def _check(operands: Operands, window: int, softcap: float) -> None:
    (q, k_cache, v_cache, starts, lengths, tables, counts, *sinks), (out,) = operands.inputs, operands.outputs
    operands.floating(q, k_cache, v_cache, out, *sinks)
    operands.typed(torch.int32, starts, lengths, tables, counts)
    operands.require(q.ndim == 3 and q.stride(2) == 1 and q.shape == out.shape, "q[R, h, D] and an output of its shape")
    paged = k_cache.ndim == 4 and k_cache.shape == v_cache.shape
    operands.require(paged and min(k_cache.shape) > 0, "two caches [blocks, block_tokens, kv heads, D]")
    operands.require(k_cache.is_contiguous() and v_cache.is_contiguous(), "caches of token_major blocks")
    operands.require(k_cache.shape[3] == q.shape[2] and q.shape[1] % k_cache.shape[2] == 0, "heads a multiple of kv heads")
    operands.require(tables.ndim == 2 and lengths.ndim == 1 and starts.ndim == 1, "the step inputs of attention")
    operands.require(len(starts) == len(lengths) + 1 and len(tables) == len(lengths), "the step inputs of attention")
    operands.shaped(counts, 4)
    operands.require(window >= 0 and softcap >= 0, "a window and a soft cap of 0 (none) or more")
    for sink in sinks:
        operands.shaped(sink, q.shape[1])


@dataclass(frozen=True)
class _Scores:
    """How scores are made; `sinks`[h] are float32."""

    scale: float
    softcap: float
    sinks: torch.Tensor | None

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention of q[n, h, rows, D] over k, v[n, kvh, keys, D], without sinks; log-sum-exp of the scores [n, h, rows]."""
        if self.softcap:
            return capped_attention(q, k, v, causal, mask, self.scale, self.softcap)
        return _flash(q, k, v, 0.0, causal, attn_mask=mask, scale=self.scale)

    def with_sinks(self, result: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """What `attend` gave over all keys, its softmax's denominator extended by the sinks."""
        if self.sinks is None:
            return result
        return result * torch.sigmoid(weight - self.sinks[:, None]).unsqueeze(-1)


class PagedHeads:
    """One layer's queries, caches and output."""

    def __init__(
        self,
        q: torch.Tensor,
        out: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        gather: torch.Tensor,
        scores: _Scores,
        layout: Layout,
    ) -> None:
        self._q, self._out, self._gather, self._scores, self._layout = q, out, gather, scores, layout
        self._heads: tuple[int, int] = (k_cache.shape[2], k_cache.shape[3])
        self._k, self._v = (cache.flatten(0, 1).flatten(1) for cache in (k_cache, v_cache))
        # [1, kv heads, tokens, D]: runs of tokens are windows on these
        self._k_runs, self._v_runs = (cache.flatten(0, 1).transpose(0, 1).unsqueeze(0) for cache in (k_cache, v_cache))
        self._alike = k_cache.data_ptr() == v_cache.data_ptr()
        self._decode_rows: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def _fetch(self, keys: Keys, sequences: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values as [sequences, kv heads, tokens, D]."""
        if keys.indices is None:
            return self._k_runs.narrow(2, keys.start, keys.count), self._v_runs.narrow(2, keys.start, keys.count)
        windows = self._layout.gathered(keys, sequences, self._heads, self._gather)
        torch.index_select(self._k, 0, keys.indices, out=windows.k)
        if self._alike:
            return windows.k_heads, windows.k_heads
        torch.index_select(self._v, 0, keys.indices, out=windows.v)
        return windows.k_heads, windows.v_heads

    def decode(self, batch: DecodeBatch) -> None:
        k, v = self._fetch(batch.keys, batch.count)
        if batch.rows is None:
            q, out = self._decode_run(batch.first, batch.count)
            out.copy_(self._scores.with_sinks(*self._scores.attend(q, k, v, False, batch.mask)))
        else:
            q = self._q[batch.rows].unsqueeze(2)
            result = self._scores.with_sinks(*self._scores.attend(q, k, v, False, batch.mask))
            self._out[batch.rows] = result.squeeze(2).to(self._out.dtype)

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
        self._out[block.first : block.stop] = self._scores.with_sinks(result, weight)[0].transpose(0, 1)

    def _partial(self, q: torch.Tensor, segment: Segment) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention over one segment, and the log-sum-exp of its scores (minus infinity where a row sees none of it)."""
        k, v = self._fetch(segment.keys, 1)
        result, weight = self._scores.attend(q, k, v, segment.causal, segment.mask)
        if segment.blind_from < q.shape[2]:
            weight[:, :, segment.blind_from :] = -torch.inf
            result[:, :, segment.blind_from :] = 0
        return result, weight


def _share(part: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    # a row that has seen nothing yet has both at minus infinity: its share is 0, not NaN
    return torch.where(torch.isinf(part), 0.0, torch.exp(part - total)).unsqueeze(-1)
