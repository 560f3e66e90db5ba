"""What ranks tell each other: the first one what is to be done, one of each group what its sequences sampled."""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from .executor_interface import StepResult
from .protocol import SamplingParameters, TokenLogprob
from .scheduling.step import CommonSize, GroupedStep, Step, StepBatch


class Admit(msgspec.Struct, frozen=True, tag=True):
    """Arguments of `Executor.admit` in a group; tokens are int32."""

    group: int
    slot: int
    sampling: SamplingParameters
    end_tokens: tuple[int, ...]
    prompt: bytes
    output: bytes


class Part(msgspec.Struct, frozen=True):
    """A group's `StepBatch` without what only the scheduler reads; arrays as bytes, `blocks` columns of the block tables."""

    decode_rows: int
    blocks: int
    token_ids: bytes
    positions: bytes
    slot_mapping: bytes
    row_slots: bytes
    sequence_starts: bytes
    context_lengths: bytes
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
    "block_tables",
    "logit_rows",
    "logit_slots",
)


def parts_of(step: Step) -> tuple[StepBatch | None, ...]:
    """A step's parts by group."""
    return step.parts if isinstance(step, GroupedStep) else (step,)


def run_message(step: Step, common: CommonSize | None = None) -> Run:
    """What the other ranks are told of a step."""
    return Run(step.step_id, tuple(None if part is None else _part(part) for part in parts_of(step)), common)


def _part(batch: StepBatch) -> Part:
    arrays = {name: int32_bytes(getattr(batch, name)) for name in _INT32}
    slots = np.ascontiguousarray(batch.slot_mapping, np.int64).tobytes()
    return Part(batch.decode_rows, batch.block_tables.shape[1], slot_mapping=slots, **arrays)


def step_batch(step_id: int, part: Part) -> StepBatch:
    """A group's part as the first rank has it, but for the names of its requests."""
    arrays = {name: np.frombuffer(getattr(part, name), np.int32) for name in _INT32}
    arrays["block_tables"] = arrays["block_tables"].reshape(-1, part.blocks)
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
