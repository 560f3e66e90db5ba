"""Log probabilities of the chosen tokens and of the likeliest ones, for the rows that ask."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ...plans.sampling import LOGPROBS
from .adjust_logits import check_slots
from .base import Launch, Operands
from .sampling_rows import blocks, requested


def token_logprobs(operands: Operands) -> Launch:
    """(logits[L, V], tokens[L] i32, logit_slots[L], features) -> chosen_logprobs[L] f32, top_tokens[L, T] i32,
    top_logprobs[L, T] f32.

    Natural logarithms of the softmax of the logits as the model gave them, before any adjustment. Of rows that do not ask,
    nothing is written. Top tokens come likeliest first, ties by token; when V < T the rest is -1.
    """
    (logits, tokens, logit_slots, features), (chosen, top_tokens, top_logprobs) = operands.take(4, 3)
    operands.floating(logits)
    operands.typed(torch.int32, tokens, top_tokens)
    operands.typed(torch.float32, chosen, top_logprobs)
    operands.require(logits.ndim == 2 and tokens.shape == chosen.shape == (len(logits),), "logits[L, V], tokens[L], chosen[L]")
    tops = top_tokens.shape == top_logprobs.shape and top_tokens.ndim == 2 and len(top_tokens) == len(logits)
    operands.require(tops, "top tokens and their log probabilities [L, T]")
    check_slots(operands, logits, logit_slots, [features])
    wanted = requested(operands.context, logit_slots, features)
    context, taken = operands.context, tokens.numpy()
    chosen_array, top_array, value_array = chosen.numpy(), top_tokens.numpy(), top_logprobs.numpy()

    def run() -> None:
        wanted.refresh(context.step)
        if not wanted.any & LOGPROBS:
            return
        for rows in blocks(wanted.rows(LOGPROBS), logits.shape[1]):
            logprobs = _log_softmax(logits[torch.from_numpy(rows)].float().numpy())
            chosen_array[rows] = logprobs[np.arange(len(rows)), np.maximum(taken[rows], 0)]
            top_array[rows], value_array[rows] = _likeliest(logprobs, top_array.shape[1])

    return run


def _log_softmax(values: NDArray[np.float32]) -> NDArray[np.float32]:
    # a row of NaN fails its request by its token; no warning is wanted here
    with np.errstate(invalid="ignore"):
        shifted = values - values.max(axis=1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)


def _likeliest(logprobs: NDArray[np.float32], count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Exact also under ties: all tokens at least as likely as the count-th are ranked by (-log probability, token)."""
    rows, vocabulary = logprobs.shape
    kept = min(count, vocabulary)
    tokens = np.full((rows, count), -1, np.int64)
    values = np.full((rows, count), -np.inf, np.float32)
    if kept == 0:
        return tokens, values
    lowest = np.partition(logprobs, vocabulary - kept, axis=1)[:, vocabulary - kept]
    row, token = np.nonzero(logprobs >= lowest[:, None])
    order = np.lexsort((token, -logprobs[row, token], row))
    row, token = row[order], token[order]
    sizes = np.bincount(row, minlength=rows)
    place = np.arange(len(row)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    inside = place < kept
    row, token, place = row[inside], token[inside], place[inside]
    tokens[row, place] = token
    values[row, place] = logprobs[row, token]
    return tokens, values
