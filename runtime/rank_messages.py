"""What ranks tell each other: the first one what is to be done, one of each group what its sequences sampled."""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from .executor_interface import StepResult
from .protocol import SamplingParameters, TokenLogprob
from .scheduling.step import CommonSize, GroupedStep, IntArray, Step, StepBatch


class Admit(msgspec.Struct, frozen=True, tag=True):
    """Arguments of `Executor.admit` in a group; tokens are int32."""

    group: int
    slot: int
    sampling: SamplingParameters
    end_tokens: tuple[int, ...]
    prompt: bytes
    output: bytes


class Part(msgspec.Struct, frozen=True):
    """A group's `StepBatch` without what only the scheduler reads; arrays as bytes. Of the block tables, which have `blocks`
    columns, only those of `new_tables`, sequences by number: the others are as the rank knows them (`BlockTables`)."""

    decode_rows: int
    blocks: int
    token_ids: bytes
    positions: bytes
    slot_mapping: bytes
    row_slots: bytes
    sequence_starts: bytes
    context_lengths: bytes
    new_tables: bytes
    block_tables: bytes
    logit_rows: bytes
    logit_slots: bytes


class Run(msgspec.Struct, frozen=True, tag=True):
    """A step: a part for each group, None for one without rows; the size that all pad it to where they meet, else None."""

    step_id: int
    parts: tuple[Part | None, ...]
    common: CommonSize | None


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Nothing follows."""


Message = Admit | Run | Stop


class Report(msgspec.Struct, frozen=True):
    """A group's `StepResult`: tokens int32, negative where there is none; `logprobs` empty where no row asked for any."""

    step_id: int
    tokens: bytes
    logprobs: tuple[TokenLogprob | None, ...]


_INT32 = (
    "token_ids",
    "positions",
    "row_slots",
    "sequence_starts",
    "context_lengths",
    "logit_rows",
    "logit_slots",
)


def parts_of(step: Step) -> tuple[StepBatch | None, ...]:
    """A step's parts by group."""
    return step.parts if isinstance(step, GroupedStep) else (step,)


class BlockTables:
    """A group's block tables by slot, as its ranks know them: the first rank has one too, and tells only rows that are new. A
    table changes once in a block's tokens, and all of them together would be most of a message."""

    def __init__(self) -> None:
        self._rows: NDArray[np.int32] = np.zeros((0, 0), np.int32)

    def tell(self, slots: IntArray, tables: IntArray) -> IntArray:
        """Which of a step's sequences have tables that the others do not know; from now on they do."""
        blocks = tables.shape[1]
        self._make_room(slots, blocks)
        new = np.flatnonzero((self._rows[slots, :blocks] != tables).any(axis=1)).astype(np.int32)
        self._rows[slots[new], :blocks] = tables[new]
        return new

    def take(self, slots: IntArray, new: IntArray, rows: IntArray) -> IntArray:
        """All tables of a step, given those that are new."""
        self._make_room(slots, rows.shape[1])
        self._rows[slots[new], : rows.shape[1]] = rows
        return self._rows[slots, : rows.shape[1]]

    def _make_room(self, slots: IntArray, blocks: int) -> None:
        known = self._rows.shape
        more = max(0, int(slots.max(initial=-1)) + 1 - known[0]), max(0, blocks - known[1])
        if any(more):
            self._rows = np.pad(self._rows, ((0, more[0]), (0, more[1])))


class RunMessages:
    """Makes what the other ranks are told of steps; each message counts on those before it."""

    def __init__(self) -> None:
        self._tables: dict[int, BlockTables] = {}

    def of(self, step: Step, common: CommonSize | None = None) -> Run:
        parts = (
            None if part is None else _part(part, self._tables.setdefault(group, BlockTables()))
            for group, part in enumerate(parts_of(step))
        )
        return Run(step.step_id, tuple(parts), common)


def _part(batch: StepBatch, known: BlockTables) -> Part:
    arrays = {name: int32_bytes(getattr(batch, name)) for name in _INT32}
    slots = np.ascontiguousarray(batch.slot_mapping, np.int64).tobytes()
    new = known.tell(batch.row_slots[batch.sequence_starts[:-1]], batch.block_tables)
    tables = int32_bytes(batch.block_tables[new])
    blocks = batch.block_tables.shape[1]
    return Part(batch.decode_rows, blocks, slot_mapping=slots, new_tables=new.tobytes(), block_tables=tables, **arrays)


def step_batch(step_id: int, part: Part, known: BlockTables) -> StepBatch:
    """A group's part as the first rank has it, but for the names of its requests."""
    arrays = {name: np.frombuffer(getattr(part, name), np.int32) for name in _INT32}
    new, rows = (np.frombuffer(found, np.int32) for found in (part.new_tables, part.block_tables))
    slots = arrays["row_slots"][arrays["sequence_starts"][:-1]]
    arrays["block_tables"] = known.take(slots, new, rows.reshape(len(new), part.blocks))
    names = ("",) * len(arrays["logit_rows"])
    return StepBatch(
        step_id=step_id,
        slot_mapping=np.frombuffer(part.slot_mapping, np.int64),
        decode_rows=part.decode_rows,
        request_ids=(),
        logit_request_ids=names,
        admissions=(),
        **arrays,
    )


def report_of(step_id: int, result: StepResult) -> Report:
    asked = any(logprob is not None for logprob in result.logprobs)
    return Report(step_id, int32_bytes(result.tokens), result.logprobs if asked else ())


def result_of(report: Report) -> StepResult:
    tokens = np.frombuffer(report.tokens, np.int32)
    return StepResult(tokens, report.logprobs or (None,) * len(tokens))


def int32_bytes(array: NDArray[np.int32]) -> bytes:
    return np.ascontiguousarray(array, np.int32).tobytes()
