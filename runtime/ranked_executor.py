"""The ranks of a plan as one executor: the first rank tells the others what it does, and all do the same."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import msgspec
import numpy as np
from numpy.typing import NDArray

from .collectives import Collectives
from .executor_interface import Executor, RowsFailed, Started, StepResult
from .protocol import SamplingParameters
from .rank_watch import RankWatch
from .scheduling.step import IntArray, StepBatch


class Admit(msgspec.Struct, frozen=True, tag=True):
    """Arguments of `Executor.admit`; tokens are int32."""

    slot: int
    sampling: SamplingParameters
    end_tokens: tuple[int, ...]
    prompt: bytes
    output: bytes


class Step(msgspec.Struct, frozen=True, tag=True):
    """A `StepBatch` without what only the scheduler reads; arrays as their bytes, `blocks` columns of the block tables."""

    step_id: int
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


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Nothing follows."""


Message = Admit | Step | Stop

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


class RankedExecutor:
    """An `Executor` on rank 0: hands every call on to the other ranks, then does its own part."""

    def __init__(self, executor: Executor, collectives: Collectives, watch: RankWatch) -> None:
        self._executor, self._collectives, self._watch = executor, collectives, watch
        self._encoder = msgspec.msgpack.Encoder()

    def check(self, sampling: SamplingParameters, end_tokens: tuple[int, ...], prompt: IntArray) -> None:
        self._executor.check(sampling, end_tokens, prompt)

    def admit(
        self, slot: int, sampling: SamplingParameters, end_tokens: tuple[int, ...], prompt: IntArray, output: IntArray
    ) -> None:
        self._tell(Admit(slot, sampling, end_tokens, _bytes(prompt), _bytes(output)))
        self._executor.admit(slot, sampling, end_tokens, prompt, output)

    def start(self, batch: StepBatch) -> Started:
        progress = self._watch.progress
        progress.began(batch.step_id)
        try:
            self._tell(step_message(batch))
            started = self._executor.start(batch)
        except RuntimeError as error:
            raise self._watch.blame(error) from error

        def result() -> StepResult:
            try:
                return started()
            except RuntimeError as error:
                raise self._watch.blame(error) from error
            finally:
                progress.ended(batch.step_id)

        return result

    def close(self) -> None:
        self._watch.ends()
        with suppress(RuntimeError):  # they may be gone
            self._tell(Stop())
        self._executor.close()

    def _tell(self, message: Message) -> None:
        self._collectives.send(self._encoder.encode(message))


def step_message(batch: StepBatch) -> Step:
    """What the other ranks are told of a step."""
    arrays = {name: _bytes(getattr(batch, name)) for name in _INT32}
    slots = np.ascontiguousarray(batch.slot_mapping, np.int64).tobytes()
    return Step(batch.step_id, batch.decode_rows, batch.block_tables.shape[1], slot_mapping=slots, **arrays)


def step_batch(step: Step) -> StepBatch:
    """The step as the first rank has it, but for the names of its requests."""
    arrays = {name: np.frombuffer(getattr(step, name), np.int32) for name in _INT32}
    arrays["block_tables"] = arrays["block_tables"].reshape(-1, step.blocks)
    names = ("",) * len(arrays["logit_rows"])
    return StepBatch(
        step_id=step.step_id,
        slot_mapping=np.frombuffer(step.slot_mapping, np.int64),
        decode_rows=step.decode_rows,
        request_ids=(),
        logit_request_ids=names,
        admissions=(),
        **arrays,
    )


def follow(executor: Executor, collectives: Collectives, began: Callable[[int], None]) -> None:
    """What every other rank does until it is told to stop: the same as the first one. `began` is told of each step.

    A step's result is asked for once the next one runs, as the first rank does; rows that fail there fail here alike.
    """
    decoder = msgspec.msgpack.Decoder(Message)
    running: Started | None = None
    while True:
        message = decoder.decode(collectives.receive())
        if isinstance(message, Stop):
            return
        if isinstance(message, Admit):
            prompt, output = (np.frombuffer(tokens, np.int32) for tokens in (message.prompt, message.output))
            executor.admit(message.slot, message.sampling, message.end_tokens, prompt, output)
            continue
        began(message.step_id)
        started = executor.start(step_batch(message))
        if running is not None:
            _finish(running)
        running = started


def _finish(started: Started) -> None:
    with suppress(RowsFailed):  # the first rank tells whose they were
        started()


def _bytes(array: NDArray[np.int32]) -> bytes:
    return np.ascontiguousarray(array, np.int32).tobytes()
