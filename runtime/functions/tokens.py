"""Rows in and out of the model: tokens to embeddings, hidden rows to logit rows."""

from __future__ import annotations

import numpy as np
import torch

from .base import Launch, Operands


def take_last_tokens(operands: Operands) -> Launch:
    """(token_ids[R] i32, row_slots[R] i32, last_tokens[S] i32) -> tokens[R] i32: where token_ids is -1, the token that the
    row's slot sampled last; padded rows (slot -1) give 0."""
    (token_ids, row_slots, last_tokens), (tokens,) = operands.take(3, 1)
    operands.typed(torch.int32, token_ids, row_slots, last_tokens, tokens)
    operands.require(tokens.ndim == 1 and token_ids.shape == row_slots.shape == tokens.shape, "three vectors of R rows")
    operands.require(last_tokens.ndim == 1 and len(last_tokens) > 0, "last_tokens[S]")
    ids, slots, last, out = token_ids.numpy(), row_slots.numpy(), last_tokens.numpy(), tokens.numpy()

    def run() -> None:
        np.copyto(out, ids)
        waiting = ids < 0
        if waiting.any():
            np.copyto(out, last[np.maximum(slots, 0)], where=waiting)
        out[slots < 0] = 0

    return run


def embedding(operands: Operands) -> Launch:
    """(tokens[R] i32, table[V, H]) -> rows[R, H]."""
    (tokens, table), (rows,) = operands.take(2, 1)
    operands.typed(torch.int32, tokens)
    operands.floating(table, rows)
    operands.require(tokens.ndim == 1 and table.ndim == 2, "tokens[R], table[V, H]")
    operands.shaped(rows, len(tokens), table.shape[1])

    def run() -> None:
        torch.index_select(table, 0, tokens, out=rows)

    return _contiguous_output(operands, rows, run)


def gather_rows(operands: Operands) -> Launch:
    """(x[R, H], logit_rows[L] i32) -> rows[L, H]."""
    (x, logit_rows), (rows,) = operands.take(2, 1)
    operands.typed(torch.int32, logit_rows)
    operands.require(x.dtype == rows.dtype and x.ndim == 2 and logit_rows.ndim == 1, "x[R, H] and out of one type, logit_rows[L]")
    operands.shaped(rows, len(logit_rows), x.shape[1])

    def run() -> None:
        torch.index_select(x, 0, logit_rows, out=rows)

    return _contiguous_output(operands, rows, run)


def _contiguous_output(operands: Operands, out: torch.Tensor, run: Launch) -> Launch:
    operands.require(out.is_contiguous(), "a contiguous output")
    return run
