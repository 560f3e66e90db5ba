"""What ranks tell each other: the first one what is to be done, one of each group what its sequences sampled."""

from __future__ import annotations

from collections import defaultdict

import msgspec
import numpy as np
from numpy.typing import NDArray

from .executor_interface import StepResult
from .protocol import SamplingParameters, TokenLogprob
from .scheduling.step import BlockCopies, CommonSize, GroupedStep, IntArray, Step, StepBatch, WindowPart


class Admit(msgspec.Struct, frozen=True, tag=True):
    """Arguments of `Executor.admit` in a group; tokens are int32."""

    group: int
    slot: int
    sampling: SamplingParameters
    end_tokens: tuple[int, ...]
    prompt: bytes
    output: bytes


class PoolPart(msgspec.Struct, frozen=True):
    """What a step says of one pool's blocks, as bytes. Of the block tables, which have `columns`, only those of `new_tables`,
    sequences by number: the others are as the rank knows them (`BlockTables`)."""

    columns: int
    slot_mapping: bytes
    new_tables: bytes
    block_tables: bytes


class Copies(msgspec.Struct, frozen=True):
    """`BlockCopies`, as bytes: every rank copies its own part of these blocks."""

    device: bytes
    host: bytes
    pool: int


class Part(msgspec.Struct, frozen=True):
    """A group's `StepBatch` without what only the scheduler reads; arrays as bytes. `pools` are pool 0 and those of windows."""

    decode_rows: int
    token_ids: bytes
    positions: bytes
    row_slots: bytes
    sequence_starts: bytes
    context_lengths: bytes
    logit_rows: bytes
    logit_slots: bytes
    pools: tuple[PoolPart, ...]
    saves: tuple[Copies, ...] = ()
    loads: tuple[Copies, ...] = ()


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
    """A group's block tables of one pool by slot, as its ranks know them: the first rank has one too, and tells only rows that
    are new. A table changes once in a block's tokens, and all of them together would be most of a message."""

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


PoolTables = defaultdict[int, BlockTables]
"""A group's block tables by pool."""


def no_tables() -> PoolTables:
    """None known yet."""
    return defaultdict(BlockTables)


class RunMessages:
    """Makes what the other ranks are told of steps; each message counts on those before it."""

    def __init__(self) -> None:
        self._tables: defaultdict[int, PoolTables] = defaultdict(no_tables)

    def of(self, step: Step, common: CommonSize | None = None) -> Run:
        parts = (None if part is None else _part(part, self._tables[group]) for group, part in enumerate(parts_of(step)))
        return Run(step.step_id, tuple(parts), common)


def _part(batch: StepBatch, known: PoolTables) -> Part:
    arrays = {name: int32_bytes(getattr(batch, name)) for name in _INT32}
    slots = batch.row_slots[batch.sequence_starts[:-1]]
    pools = (WindowPart(batch.block_tables, batch.slot_mapping), *batch.windows)
    told = tuple(_pool_part(part, slots, known[pool]) for pool, part in enumerate(pools))
    return Part(batch.decode_rows, pools=told, saves=_told(batch.saves), loads=_told(batch.loads), **arrays)


def _told(copies: tuple[BlockCopies, ...]) -> tuple[Copies, ...]:
    return tuple(Copies(int32_bytes(item.device), int32_bytes(item.host), item.pool) for item in copies)


def _copies(told: tuple[Copies, ...]) -> tuple[BlockCopies, ...]:
    return tuple(
        BlockCopies(np.frombuffer(item.device, np.int32), np.frombuffer(item.host, np.int32), item.pool) for item in told
    )


def _pool_part(part: WindowPart, slots: IntArray, known: BlockTables) -> PoolPart:
    new = known.tell(slots, part.block_tables)
    mapping = np.ascontiguousarray(part.slot_mapping, np.int64).tobytes()
    return PoolPart(part.block_tables.shape[1], mapping, new.tobytes(), int32_bytes(part.block_tables[new]))


def step_batch(step_id: int, part: Part, known: PoolTables) -> StepBatch:
    """A group's part as the first rank has it, but for the names of its requests."""
    arrays = {name: np.frombuffer(getattr(part, name), np.int32) for name in _INT32}
    slots = arrays["row_slots"][arrays["sequence_starts"][:-1]]
    first, *windows = (_pool_of(told, slots, known[pool]) for pool, told in enumerate(part.pools))
    names = ("",) * len(arrays["logit_rows"])
    return StepBatch(
        step_id=step_id,
        slot_mapping=first.slot_mapping,
        block_tables=first.block_tables,
        decode_rows=part.decode_rows,
        request_ids=(),
        logit_request_ids=names,
        admissions=(),
        windows=tuple(windows),
        saves=_copies(part.saves),
        loads=_copies(part.loads),
        **arrays,
    )


def _pool_of(told: PoolPart, slots: IntArray, known: BlockTables) -> WindowPart:
    new, rows = (np.frombuffer(found, np.int32) for found in (told.new_tables, told.block_tables))
    tables = known.take(slots, new, rows.reshape(len(new), told.columns))
    return WindowPart(tables, np.frombuffer(told.slot_mapping, np.int64))


def report_of(step_id: int, result: StepResult) -> Report:
    asked = any(logprob is not None for logprob in result.logprobs)
    return Report(step_id, int32_bytes(result.tokens), result.logprobs if asked else ())


def result_of(report: Report) -> StepResult:
    tokens = np.frombuffer(report.tokens, np.int32)
    return StepResult(tokens, report.logprobs or (None,) * len(tokens))


def int32_bytes(array: NDArray[np.int32]) -> bytes:
    return np.ascontiguousarray(array, np.int32).tobytes()
