"""Step batches for sequences with fixed places in the KV cache: goldens, accuracy checks and benchmarks, no scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .scheduling.step import StepBatch


@dataclass(frozen=True)
class Rows:
    """Rows of one sequence: `tokens` at consecutive positions from `start` on. `sequence` is also its sampling slot."""

    sequence: int
    start: int
    tokens: Sequence[int]


def fixed_batch(rows: Sequence[Rows], blocks_per_sequence: int, block_tokens: int, all_logits: bool = False) -> StepBatch:
    """A batch in which sequence s owns blocks s * blocks_per_sequence and up. Sequences of one row must come first.

    Logits are asked for each sequence's last row, or for all rows.
    """
    counts = [len(part.tokens) for part in rows]
    starts = np.cumsum([0, *counts]).astype(np.int32)
    positions = np.concatenate([np.arange(part.start, part.start + len(part.tokens)) for part in rows]).astype(np.int32)
    owners = np.repeat([part.sequence for part in rows], counts).astype(np.int32)
    tables = np.stack([np.arange(blocks_per_sequence) + part.sequence * blocks_per_sequence for part in rows]).astype(np.int32)
    logit_rows = np.arange(starts[-1], dtype=np.int32) if all_logits else (starts[1:] - 1).astype(np.int32)
    names = tuple(str(part.sequence) for part in rows)
    return StepBatch(
        step_id=0,
        token_ids=np.concatenate([np.asarray(part.tokens, np.int32) for part in rows]),
        positions=positions,
        slot_mapping=(owners.astype(np.int64) * blocks_per_sequence * block_tokens) + positions,
        row_slots=owners,
        sequence_starts=starts,
        context_lengths=np.asarray([part.start + len(part.tokens) for part in rows], np.int32),
        block_tables=tables,
        logit_rows=logit_rows,
        logit_slots=owners[logit_rows],
        decode_rows=sum(count == 1 for count in counts),
        request_ids=names,
        logit_request_ids=tuple(str(owners[row]) for row in logit_rows),
        admissions=(),
    )
