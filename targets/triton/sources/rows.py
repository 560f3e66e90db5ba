"""Rows in and out of the model."""

import triton
import triton.language as tl

from .dependence import let_next_begin, wait_for_inputs


@triton.jit
def gather(
    source, indices, out,
    N: tl.constexpr, SOURCE_ROW: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """out[i] = source[indices[i]]: tokens to embeddings, hidden rows to those that want logits. Grid: rows, blocks of a row."""
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < N
    row = tl.program_id(0).to(tl.int64)
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    index = tl.load(indices + row).to(tl.int64)
    values = tl.load(source + index * SOURCE_ROW + columns, mask=inside)
    tl.store(out + row * N + columns, values, mask=inside)


@triton.jit
def take_last_tokens(token_ids, row_slots, last_tokens, tokens, rows, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr):
    """The token of each row; where it is -1, what the row's slot sampled last. Padded rows give 0. Grid: blocks of rows."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    present = at < rows
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    token = tl.load(token_ids + at, mask=present, other=0)
    slot = tl.load(row_slots + at, mask=present, other=-1)
    waiting = (token < 0) & (slot >= 0)
    token = tl.where(waiting, tl.load(last_tokens + tl.maximum(slot, 0), mask=present & waiting, other=0), token)
    tl.store(tokens + at, tl.where(slot < 0, 0, token), mask=present)
