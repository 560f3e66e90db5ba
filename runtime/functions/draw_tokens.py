"""Choosing tokens: argmax for greedy rows, an inverse-CDF draw for the others, vectorised over the batch.

What a row draws depends on its own logits, parameters, seed and output position alone: rows that take another path
through this file (a wider search for the nucleus, say) do the same arithmetic in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ...plans.sampling import ADJUSTMENTS, FILTERS, RANDOM
from .adjust_logits import check_slots
from .base import Launch, Operands
from .philox import uniform
from .sampling_rows import blocks, requested

Logits = NDArray[np.float32]
Rows = NDArray[np.int64]
# How many of the largest logits are searched for the cut first; the whole vocabulary is sorted only where that is not enough.
CANDIDATES = 1024


@dataclass(frozen=True)
class _Slots:
    temperature: np.ndarray
    top_k: np.ndarray
    top_p: np.ndarray
    min_p: np.ndarray
    seed: np.ndarray
    output_position: np.ndarray


def draw_tokens(operands: Operands) -> Launch:
    """(logits[L, V], adjusted[L, V] f32, logit_slots[L], features, temperature, top_k, top_p, min_p, seed i64,
    output_position) -> tokens[L] i32.

    Greedy rows take the first of the largest logits. Others divide by temperature, keep the tokens at least as likely as
    the k-th (top_k; ties are kept), of those the fewest likeliest whose mass reaches top_p (Holtzman et al. 2020; ties are
    kept), of those the ones at least min_p times as likely as the likeliest, and draw in token order with
    Philox(seed, output position). A row whose largest logit is NaN or infinite gives -1; a padded row (slot -1) gives 0.
    """
    (logits, adjusted, logit_slots, features, *tables), (tokens,) = operands.take(10, 1)
    operands.typed(torch.int32, tokens)
    operands.typed(torch.float32, adjusted)
    operands.require(logits.ndim == 2 and logits.shape == adjusted.shape and logits.shape[1] > 0, "logits and adjusted [L, V]")
    check_slots(operands, logits, logit_slots, [features, *tables])
    operands.shaped(tokens, len(logits))
    operands.typed(torch.int64, tables[4])
    slots = _Slots(*(table.numpy() for table in tables))
    wanted = requested(operands.context, logit_slots, features)
    plain = logits.numpy() if logits.dtype == torch.float32 else adjusted.numpy()
    changed, out, context = adjusted.numpy(), tokens.numpy(), operands.context
    every_row = np.arange(len(logits))

    def run() -> None:
        wanted.refresh(context.step)
        values = changed if wanted.any & ADJUSTMENTS else plain
        best = values.argmax(1)
        largest = values[every_row, best]
        np.copyto(out, best, casting="unsafe")
        if wanted.any & RANDOM:
            rows = wanted.rows(RANDOM)
            rows = rows[np.isfinite(largest[rows])]
            for group in blocks(rows, values.shape[1]):
                filtered = wanted.has(group, FILTERS)
                out[group] = _draw(values[group], largest[group], filtered, slots, wanted.slots[group])
        usable = np.isfinite(largest)
        if not usable.all():
            out[~usable] = -1
        out[wanted.slots < 0] = 0

    return run


def _draw(
    values: Logits, largest: NDArray[np.float32], filtered: NDArray[np.bool_], slots: _Slots, at: NDArray[np.int32]
) -> NDArray[np.int64]:
    scaled: Logits = values - largest[:, None]
    np.divide(scaled, slots.temperature[at][:, None], out=scaled)
    chance = uniform(slots.seed[at], slots.output_position[at])
    drawn = np.empty(len(values), np.int64)
    free, cut = np.flatnonzero(~filtered), np.flatnonzero(filtered)
    if len(free):
        drawn[free] = _inverse_cdf(np.exp(scaled[free]), chance[free])
    if len(cut):
        lowest = _lowest_kept(scaled[cut], slots, at[cut])
        weights, tokens = _compact(scaled[cut], lowest)
        drawn[cut] = tokens[np.arange(len(cut)), _inverse_cdf(weights, chance[cut])]
    return drawn


def _inverse_cdf(weights: NDArray[np.float32], chance: NDArray[np.float64]) -> NDArray[np.int64]:
    """First column whose running sum (float64, in column order) passes chance times the row's total."""
    running = np.cumsum(weights, axis=1, dtype=np.float64)
    total = running[:, -1]
    # below the total even after rounding, so a column of weight 0 is never taken
    target = np.minimum(chance * total, np.nextafter(total, 0.0))
    return (running <= target[:, None]).sum(axis=1)


def _compact(scaled: Logits, lowest: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Weights and token ids of the kept tokens in token order, rows padded with weight 0."""
    row, token = np.nonzero(scaled >= lowest[:, None])
    kept = np.bincount(row, minlength=len(scaled))
    place = np.arange(len(row)) - np.repeat(np.cumsum(kept) - kept, kept)
    weights = np.zeros((len(scaled), int(kept.max())), np.float32)
    tokens = np.zeros(weights.shape, np.int64)
    weights[row, place] = np.exp(scaled[row, token])
    tokens[row, place] = token
    return weights, tokens


def _lowest_kept(scaled: Logits, slots: _Slots, at: NDArray[np.int32]) -> NDArray[np.float32]:
    """The smallest scaled logit each row keeps (scaled logits are 0 at the row's largest)."""
    vocabulary = scaled.shape[1]
    top_k, top_p = slots.top_k[at], slots.top_p[at].astype(np.float64)
    top_k = np.where((top_k <= 0) | (top_k > vocabulary), vocabulary, top_k)
    lowest = np.empty(len(scaled), np.float32)
    pending = np.arange(len(scaled))
    for count in (min(CANDIDATES, vocabulary), vocabulary):
        largest = _largest(scaled[pending], count)
        found, known = _cut(scaled[pending], largest, top_k[pending], top_p[pending])
        lowest[pending[known]] = found[known]
        pending = pending[~known]
        if not len(pending):
            break
    with np.errstate(divide="ignore"):
        by_min_p = np.log(slots.min_p[at])
    # the likeliest token stays whatever min_p says
    return np.minimum(np.maximum(lowest, by_min_p), 0.0)


def _largest(scaled: Logits, count: int) -> Logits:
    """The `count` largest of each row, descending."""
    vocabulary = scaled.shape[1]
    if count < vocabulary:
        scaled = np.partition(scaled, vocabulary - count, axis=1)[:, vocabulary - count :]
    return np.sort(scaled, axis=1)[:, ::-1]


def _cut(
    scaled: Logits, largest: Logits, top_k: NDArray[np.int32], top_p: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Where top-k and top-p cut each row, and whether `largest` reached far enough to know it."""
    rows, count = np.arange(len(scaled)), largest.shape[1]
    whole = count == scaled.shape[1]
    limited = top_k < scaled.shape[1]
    by_k = np.where(limited, largest[rows, np.minimum(top_k, count) - 1], -np.inf)
    # without top-k everything is known to be kept so far; with it, ties at the end of `largest` may go on beyond
    known = whole | ~limited | ((top_k <= count) & (by_k > largest[:, -1]))
    nucleus = top_p < 1.0
    if not nucleus.any():
        return by_k.astype(np.float32), known
    kept = np.where(largest >= by_k[:, None], np.exp(largest), 0.0)
    running = np.cumsum(kept, axis=1, dtype=np.float64)
    mass = running[:, -1].copy()
    open_rows = np.flatnonzero(nucleus & ~limited)
    if len(open_rows):
        mass[open_rows] = np.exp(scaled[open_rows]).sum(axis=1)
    place = (running < (top_p * mass)[:, None]).sum(axis=1)
    reached = place < count
    by_p = np.where(nucleus, largest[rows, np.minimum(place, count - 1)], -np.inf)
    return np.maximum(by_k, by_p).astype(np.float32), known & (whole | reached | ~nucleus)
