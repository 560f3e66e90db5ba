"""A step as the scheduler hands it to an executor: the flat rows of the step ABI as numpy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

IntArray = NDArray[np.int32]


class SlotAdmission(msgspec.Struct, frozen=True, eq=False):
    """A request that took a sampling slot with this step. `prompt` and `output` are its tokens so far (output is not empty
    when it comes back after a preemption)."""

    request_id: str
    slot: int
    prompt: IntArray
    output: IntArray


class BlockCopies(msgspec.Struct, frozen=True, eq=False):
    """Physical blocks to copy between a pool on the device and its tier on the host, pairs by position; `pool` as in
    docs/scheduling.md, 0 where there is one."""

    device: IntArray
    host: IntArray
    pool: int = 0


class WindowPart(msgspec.Struct, frozen=True, eq=False):
    """What a step says of one window pool's blocks: `block_tables` int32 [sequences, columns], `slot_mapping` int64 [rows].

    Entries for blocks that lie wholly before the window of the sequence's first row are 0, and nothing reads them.
    """

    block_tables: IntArray
    slot_mapping: NDArray[np.int64]


class StepBatch(msgspec.Struct, frozen=True, eq=False):
    """Input arrays of one step, meaning and order as in `plans.program.step_inputs`, cut to what is in use. Steps share arrays:
    they are not to be written to.

    Decode rows first, then prefill chunks. `request_ids` names the sequences in row order; `logit_request_ids` those whose
    next token this step samples, in the order of `logit_rows`.

    `windows`[p - 1] is window pool p's part; `block_tables` and `slot_mapping` are those of pool 0.

    `saves` go from the device to the host: no step in flight writes their sources, and none writes what they fill before this
    step is complete. `loads` go to the device before the step's rows read them. A step without rows may have copies.
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
    saves: tuple[BlockCopies, ...] = ()
    loads: tuple[BlockCopies, ...] = ()
    windows: tuple[WindowPart, ...] = ()

    @property
    def rows(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class GroupedStep:
    """One step of several groups of ranks, each with sequences, blocks and slots of its own: `parts`[group], None for a group
    without rows. What is read of all groups together is in their order; `slots` is how many a group has, and a slot's number
    here is group * slots + its number there.
    """

    step_id: int
    parts: tuple[StepBatch | None, ...]
    slots: int

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts if part is not None)

    @property
    def request_ids(self) -> tuple[str, ...]:
        return tuple(name for part in self.parts if part is not None for name in part.request_ids)

    @property
    def logit_request_ids(self) -> tuple[str, ...]:
        return tuple(name for part in self.parts if part is not None for name in part.logit_request_ids)

    @property
    def admissions(self) -> tuple[SlotAdmission, ...]:
        return tuple(
            replace(admission, slot=group * self.slots + admission.slot)
            for group, part in enumerate(self.parts)
            if part is not None
            for admission in part.admissions
        )


Step = StepBatch | GroupedStep


@dataclass(frozen=True, slots=True)
class CommonSize:
    """What groups that meet in a step's collectives pad it to, all alike: rows, logit rows, and whether each of them has one row
    of each sequence at most."""

    rows: int
    logit_rows: int
    decode: bool


def common_size(parts: Sequence[StepBatch | None]) -> CommonSize:
    """The size that holds every group's part."""
    present = [part for part in parts if part is not None]
    return CommonSize(
        rows=max(part.rows for part in present),
        logit_rows=max(len(part.logit_rows) for part in present),
        decode=all(part.rows == len(part.context_lengths) for part in present),
    )


def empty_step(step_id: int) -> StepBatch:
    """A step without rows."""
    none = np.empty(0, np.int32)
    return StepBatch(
        step_id=step_id,
        token_ids=none,
        positions=none,
        slot_mapping=np.empty(0, np.int64),
        row_slots=none,
        sequence_starts=np.zeros(1, np.int32),
        context_lengths=none,
        block_tables=np.empty((0, 0), np.int32),
        logit_rows=none,
        logit_slots=none,
        decode_rows=0,
        request_ids=(),
        logit_request_ids=(),
        admissions=(),
    )
