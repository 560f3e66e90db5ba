"""What a request may ask to be done to its logits before a token is chosen: penalties, bias, no end before a minimum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ...plans.sampling import ADJUSTMENTS, BIAS, MINIMUM_TOKENS, PENALTIES
from .base import Launch, Operands
from .sampling_rows import Requested, blocks, requested

Logits = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class _Slots:
    """Slot buffers as arrays, meaning as in plans/sampling.py."""

    repetition_penalty: np.ndarray
    presence_penalty: np.ndarray
    frequency_penalty: np.ndarray
    prompt_seen: np.ndarray
    output_counts: np.ndarray
    bias_tokens: np.ndarray
    bias_values: np.ndarray
    min_tokens: np.ndarray
    output_position: np.ndarray
    end_tokens: np.ndarray


def adjust_logits(operands: Operands) -> Launch:
    """(logits[L, V], logit_slots[L], features, repetition_penalty, presence_penalty, frequency_penalty, prompt_seen[S, V],
    output_counts[S, V], bias_tokens[S, B], bias_values[S, B], min_tokens, output_position, end_tokens[S, E])
    -> adjusted[L, V] f32.

    In this order: repetition penalty over prompt and output (divide positive logits, multiply negative ones; Keskar et al.
    2019), presence and frequency penalties over the output, bias, and minus infinity for end tokens while fewer than
    `min_tokens` are out. `adjusted` is written when any row asks for one of these or logits are not f32; readers then read
    it, else `logits` itself.
    """
    (logits, logit_slots, features, *tables), (adjusted,) = operands.take(13, 1)
    operands.typed(torch.float32, adjusted)
    operands.require(logits.ndim == 2 and logits.shape == adjusted.shape, "logits and adjusted [L, V]")
    check_slots(operands, logits, logit_slots, [features, *tables])
    operands.require(adjusted.is_contiguous(), "a contiguous output")
    slots = _Slots(*(table.numpy() for table in tables))
    vocabulary = logits.shape[1]
    operands.require(
        slots.prompt_seen.shape[1] == slots.output_counts.shape[1] == vocabulary
        and slots.bias_tokens.shape == slots.bias_values.shape,
        "prompt_seen and output_counts [S, V], bias_tokens and bias_values [S, B]",
    )
    wanted = requested(operands.context, logit_slots, features)
    convert = logits.dtype != torch.float32
    values, context = adjusted.numpy(), operands.context

    def run() -> None:
        wanted.refresh(context.step)
        if not (convert or wanted.any & ADJUSTMENTS):
            return
        adjusted.copy_(logits)
        if wanted.any & ADJUSTMENTS:
            _adjust(values, wanted, slots)

    return run


def check_slots(operands: Operands, logits: torch.Tensor, logit_slots: torch.Tensor, tables: list[torch.Tensor]) -> None:
    """Slot operands: as many logit slots as logit rows, one number of slots everywhere."""
    operands.typed(torch.int32, logit_slots)
    operands.shaped(logit_slots, len(logits))
    same = all(table.ndim in (1, 2) and len(table) == len(tables[0]) > 0 for table in tables)
    operands.require(same, "slot buffers with one number of slots")


def _adjust(values: Logits, wanted: Requested, slots: _Slots) -> None:
    for rows in blocks(wanted.rows(PENALTIES), values.shape[1]):
        _penalise(values, rows, wanted.slots[rows], slots)
    if wanted.any & BIAS:
        rows = wanted.rows(BIAS)
        _add_bias(values, rows, wanted.slots[rows], slots)
    if wanted.any & MINIMUM_TOKENS:
        rows = wanted.rows(MINIMUM_TOKENS)
        _forbid_end(values, rows, wanted.slots[rows], slots)


def _penalise(values: Logits, rows: Rows, at: NDArray[np.int32], slots: _Slots) -> None:
    x, counts = values[rows], slots.output_counts[at]
    out = counts > 0
    repetition = slots.repetition_penalty[at][:, None]
    penalised = np.where(x > 0, x / repetition, x * repetition)
    x = np.where(out | (slots.prompt_seen[at] != 0), penalised, x)
    x -= slots.presence_penalty[at][:, None] * out
    x -= slots.frequency_penalty[at][:, None] * counts.astype(np.float32)
    values[rows] = x


def _add_bias(values: Logits, rows: Rows, at: NDArray[np.int32], slots: _Slots) -> None:
    tokens = slots.bias_tokens[at]
    row, place = np.nonzero((tokens >= 0) & (tokens < values.shape[1]))
    np.add.at(values, (rows[row], tokens[row, place]), slots.bias_values[at][row, place])


def _forbid_end(values: Logits, rows: Rows, at: NDArray[np.int32], slots: _Slots) -> None:
    early = slots.output_position[at] < slots.min_tokens[at]
    rows, tokens = rows[early], slots.end_tokens[at[early]]
    row, place = np.nonzero((tokens >= 0) & (tokens < values.shape[1]))
    values[rows[row], tokens[row, place]] = -np.inf
