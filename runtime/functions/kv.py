"""Writing keys and values into the paged KV cache, alone and together with rope."""

from __future__ import annotations

import numpy as np
import torch

from .base import Context, Launch, Operands, is_small
from .rope import check_tables, rotation


class _Slots:
    """Which rows of this step are written, made once a step; padded rows (slot -1) are left out."""

    def __init__(self, slot_mapping: torch.Tensor) -> None:
        self._mapping = slot_mapping
        self._array = slot_mapping.numpy()
        self._step = -1
        self.rows: torch.Tensor | None = None
        self.slots = slot_mapping
        self.slots_array = self._array

    def refresh(self, step: int) -> None:
        """Afterwards `rows` is None when all rows are written, else the indices of those that are."""
        if self._step == step:
            return
        self._step = step
        self.rows, self.slots, self.slots_array = None, self._mapping, self._array
        if self._array.size and self._array.min() < 0:
            kept = np.flatnonzero(self._array >= 0)
            self.rows = torch.from_numpy(kept)
            self.slots_array = self._array[kept]
            self.slots = torch.from_numpy(self.slots_array)


def slots_of(context: Context, slot_mapping: torch.Tensor) -> _Slots:
    """Which rows a step writes, shared by all layers."""
    return context.shared(("slots", slot_mapping.data_ptr(), len(slot_mapping)), _Slots, lambda: _Slots(slot_mapping))


def kv_write(operands: Operands) -> Launch:
    """(k[R, heads, D], v[R, heads, D], slot_mapping[R] i64) -> k_cache[blocks, block_tokens, heads, D], v_cache: row r goes to
    token slot_mapping[r] of the cache; -1 writes nothing. The rest of the caches stays as it is."""
    (k, v, slot_mapping), (k_cache, v_cache) = operands.take(3, 2)
    return _writes(operands, k, v, slot_mapping, k_cache, v_cache)


def rope_kv_write(operands: Operands) -> Launch:
    """(q[R, h, D], k[R, kvh, D], v, cos[R, d], sin[R, d], slot_mapping[R]) -> rotated q[R, h, D], k_cache, v_cache; the caches
    get the rotated k, and v as it is, as by `kv_write`. `interleaved` is that of `rope`."""
    (q, k, v, cos, sin, slot_mapping), (q_out, k_cache, v_cache) = operands.take(6, 3)
    check_tables(operands, q, cos, sin)
    check_tables(operands, k, cos, sin)
    operands.floating(q, k, q_out)
    operands.shaped(q_out, *q.shape)
    context, interleaved = operands.context, operands.flag("interleaved", False)
    both = _adjacent(q, k)
    if both is not None and is_small(both):
        turned = context.scratch("rope rows", q.dtype, both.numel()).view(both.shape)
        write = _writes(operands, turned[:, q.shape[1] :], v, slot_mapping, k_cache, v_cache)
        rotate = rotation(context, both, cos, sin, turned, interleaved)
        q_source, q_target = turned[:, : q.shape[1]].numpy(), q_out.numpy()

        def run_both() -> None:
            rotate()
            np.copyto(q_target, q_source)
            write()

        return run_both
    turned = context.scratch("rope rows", k.dtype, k.numel()).view(k.shape)
    rotate_q, rotate_k = (rotation(context, x, cos, sin, to, interleaved) for x, to in ((q, q_out), (k, turned)))
    write = _writes(operands, turned, v, slot_mapping, k_cache, v_cache)

    def run() -> None:
        rotate_q()
        rotate_k()
        write()

    return run


def _adjacent(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor | None:
    """q and k as one tensor of heads when they lie side by side in a merged buffer."""
    follows = k.data_ptr() == q.data_ptr() + q.shape[1] * q.stride(1) * q.element_size()
    if not (follows and q.stride() == k.stride() and q.shape[2] == k.shape[2]):
        return None
    return q.as_strided((q.shape[0], q.shape[1] + k.shape[1], q.shape[2]), q.stride())


def _writes(
    operands: Operands, k: torch.Tensor, v: torch.Tensor, slot_mapping: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor
) -> Launch:
    operands.typed(torch.int64, slot_mapping)
    operands.floating(k, v, k_cache, v_cache)
    operands.require(k.ndim == 3 and k.shape == v.shape, "k and v of one shape [R, heads, D]")
    operands.shaped(slot_mapping, len(k))
    paged = k_cache.ndim == 4 and k_cache.shape == v_cache.shape and k_cache.shape[2:] == k.shape[1:]
    operands.require(paged, "caches [blocks, block_tokens, heads, D]")
    operands.require(k_cache.is_contiguous() and v_cache.is_contiguous(), "caches of token_major blocks")
    slots = slots_of(operands.context, slot_mapping)
    k_tokens, v_tokens = k_cache.flatten(0, 1), v_cache.flatten(0, 1)
    if is_small(k):
        return _small(operands.context, slots, k.numpy(), v.numpy(), k_tokens.numpy(), v_tokens.numpy())
    return _large(operands.context, slots, k, v, k_tokens, v_tokens)


def _small(context: Context, slots: _Slots, k: np.ndarray, v: np.ndarray, k_tokens: np.ndarray, v_tokens: np.ndarray) -> Launch:
    def run() -> None:
        slots.refresh(context.step)
        if slots.rows is None:
            k_tokens[slots.slots_array] = k
            v_tokens[slots.slots_array] = v
        else:
            rows = slots.rows.numpy()
            k_tokens[slots.slots_array] = k[rows]
            v_tokens[slots.slots_array] = v[rows]

    return run


def _large(
    context: Context, slots: _Slots, k: torch.Tensor, v: torch.Tensor, k_tokens: torch.Tensor, v_tokens: torch.Tensor
) -> Launch:
    def run() -> None:
        slots.refresh(context.step)
        if slots.rows is None:
            k_tokens.index_copy_(0, slots.slots, k)
            v_tokens.index_copy_(0, slots.slots, v)
        else:
            k_tokens.index_copy_(0, slots.slots, k[slots.rows])
            v_tokens.index_copy_(0, slots.slots, v[slots.rows])

    return run
