"""Step batches for sequences with fixed places in the KV cache: goldens, accuracy checks and benchmarks, no scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..plans.errors import UsageError
from ..plans.schema import KvGeometry
from .scheduling.step import IntArray, StepBatch, WindowPart


@dataclass(frozen=True)
class Rows:
    """Rows of one sequence: `tokens` at consecutive positions from `start` on. `sequence` is also its sampling slot."""

    sequence: int
    start: int
    tokens: Sequence[int]


@dataclass(frozen=True)
class WindowPlaces:
    """A window pool's blocks for sequences that keep them: sequence s writes `blocks`[s] one after the other, and again from the
    first, since by then no row sees what was there."""

    window: int
    blocks: tuple[IntArray, ...]


def equal_places(kv: KvGeometry, sequences: int) -> tuple[WindowPlaces, ...]:
    """Every window pool shared out evenly among so many sequences."""
    return tuple(
        WindowPlaces(pool.window, tuple(np.arange(pool.blocks // sequences * sequences, dtype=np.int32).reshape(sequences, -1)))
        for pool in kv.windows
    )


def fixed_batch(
    rows: Sequence[Rows],
    blocks_per_sequence: int,
    block_tokens: int,
    all_logits: bool = False,
    windows: Sequence[WindowPlaces] = (),
) -> StepBatch:
    """A batch in which sequence s owns blocks s * blocks_per_sequence and up, and those of `windows`, one for each window pool of
    the plan. Sequences of one row must come first.

    Logits are asked for each sequence's last row, or for all rows. Raises UsageError where a window and the rows behind it do
    not fit a sequence's blocks.
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
        windows=tuple(_window_part(rows, blocks_per_sequence, block_tokens, places) for places in windows),
    )


def _window_part(rows: Sequence[Rows], columns: int, block_tokens: int, places: WindowPlaces) -> WindowPart:
    tables = np.zeros((len(rows), columns), np.int32)
    slots: list[NDArray[np.int64]] = []
    for table, part in zip(tables, rows, strict=True):
        own = places.blocks[part.sequence]
        positions = np.arange(part.start, part.start + len(part.tokens))
        first = max(0, part.start - places.window + 1) // block_tokens
        numbers = np.arange(first, positions[-1] // block_tokens + 1)
        if len(numbers) > len(own):
            raise UsageError(
                "A sequence has more rows at once than its blocks for a window hold.",
                where=f"blocks of the pool for a window of {places.window} tokens",
                expected=f"at least {len(numbers)} for {len(positions)} rows",
                got=str(len(own)),
                fix="run fewer rows or sequences at once, or compile for more memory (tokenspeed-compile --memory)",
            )
        table[numbers] = own[numbers % len(own)]
        slots.append(table[positions // block_tokens].astype(np.int64) * block_tokens + positions % block_tokens)
    return WindowPart(tables, np.concatenate(slots))
