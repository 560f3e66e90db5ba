"""A step as the scheduler hands it to an executor: the flat rows of the step ABI as numpy arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class SlotAdmission:
    """A request that took a sampling slot with this step. `prompt` and `output` are its tokens so far (output is not empty
    when it comes back after a preemption)."""

    request_id: str
    slot: int
    prompt: IntArray
    output: IntArray


@dataclass(frozen=True, slots=True)
class StepBatch:
    """Input arrays of one step, meaning and order as in `plans.program.step_inputs`, cut to what is in use.

    Decode rows first, then prefill chunks. `request_ids` names the sequences in row order; `logit_request_ids` those whose
    next token this step samples, in the order of `logit_rows`.
    """

    step_id: int
    token_ids: IntArray
    positions: IntArray
    slot_mapping: NDArray[np.int64]
    row_slots: IntArray
    sequence_starts: IntArray
    context_lengths: IntArray
    block_tables: IntArray
    logit_rows: IntArray
    logit_slots: IntArray
    decode_rows: int
    request_ids: tuple[str, ...]
    logit_request_ids: tuple[str, ...]
    admissions: tuple[SlotAdmission, ...]

    @property
    def rows(self) -> int:
        return len(self.token_ids)
