"""The ranks of a plan as one executor: the first rank tells the others what it does, and all do the same, each group with
its own sequences."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue

import msgspec
import numpy as np

from ..plans.mesh import stages_of
from .collectives import Collectives
from .executor_interface import RankExecutor, RowsFailed, Started, StepResult
from .protocol import SamplingParameters
from .rank_messages import (
    Admit,
    Message,
    Report,
    RunMessages,
    Stop,
    int32_bytes,
    no_tables,
    parts_of,
    report_of,
    result_of,
    step_batch,
)
from .rank_watch import RankWatch
from .scheduling.step import CommonSize, IntArray, Step, StepBatch, common_size, empty_step

NOT_FINITE = "the model gave logits that are not finite"


class RankedExecutor:
    """An `Executor` on rank 0: hands every call on to the other ranks, then does its own part.

    With several groups, steps are `GroupedStep`s; `slots` is how many a group has, a slot's number is group * slots + its
    number there. `groups_meet` says that programs have collectives between groups, so that all take part in every step.
    """

    def __init__(
        self, executor: RankExecutor, collectives: Collectives, watch: RankWatch, slots: int, *, groups_meet: bool = False
    ) -> None:
        self._executor, self._collectives, self._watch = executor, collectives, watch
        self._slots, self._meet = slots, groups_meet
        self._messages = RunMessages()
        self._encoder = msgspec.msgpack.Encoder()
        self._reports = msgspec.msgpack.Decoder(Report)

    def check(self, sampling: SamplingParameters, end_tokens: tuple[int, ...], prompt: IntArray) -> None:
        self._executor.check(sampling, end_tokens, prompt)

    def admit(
        self, slot: int, sampling: SamplingParameters, end_tokens: tuple[int, ...], prompt: IntArray, output: IntArray
    ) -> None:
        group, slot = divmod(slot, self._slots)
        self._tell(Admit(group, slot, sampling, end_tokens, int32_bytes(prompt), int32_bytes(output)))
        if group == self._collectives.rank.group:
            self._executor.admit(slot, sampling, end_tokens, prompt, output)

    def start(self, step: Step) -> Started:
        progress = self._watch.progress
        progress.began(step.step_id)
        parts = parts_of(step)
        common = common_size(parts) if self._meet else None
        try:
            self._tell(self._messages.of(step, common))
            own = _start(self._executor, step.step_id, parts[self._collectives.rank.group], common)
        except RuntimeError as error:
            raise self._watch.blame(error) from error
        except Exception:
            progress.ended(step.step_id)
            raise

        def result() -> StepResult:
            try:
                return self._result(step.step_id, parts, own)
            except RuntimeError as error:
                raise self._watch.blame(error) from error
            finally:
                progress.ended(step.step_id)

        return result

    def close(self) -> None:
        self._watch.ends()
        with suppress(RuntimeError):  # they may be gone
            self._tell(Stop())
        self._executor.close()

    def _result(self, step_id: int, parts: tuple[StepBatch | None, ...], own: Started) -> StepResult:
        """Of all groups' sequences, group by group.

        Raises RowsFailed with the requests of every group that have no usable result.
        """
        found = [self._of_group(step_id, group, part, own) for group, part in enumerate(parts)]
        tokens = np.concatenate([result.tokens for result in found])
        whole = StepResult(tokens, tuple(logprob for result in found for logprob in result.logprobs))
        failed = np.flatnonzero(tokens < 0)
        if len(failed):
            names = [name for part in parts if part is not None for name in part.logit_request_ids]
            raise RowsFailed(tuple(names[index] for index in failed), NOT_FINITE, whole)
        return whole

    def _of_group(self, step_id: int, group: int, part: StepBatch | None, own: Started) -> StepResult:
        rank = self._collectives.rank
        if rank.reporters[group] == rank.number:
            return _even_if_rows_failed(own)
        if part is None:
            return StepResult(np.empty(0, np.int32), ())
        while True:
            report = self._reports.decode(self._collectives.reported(rank.reporters[group]))
            if report.step_id == step_id:  # an earlier one is of a step that failed here
                return result_of(report)

    def _tell(self, message: Message) -> None:
        self._collectives.send(self._encoder.encode(message))


def follow(executor: RankExecutor, collectives: Collectives, began: Callable[[int], None]) -> None:
    """What every other rank does until it is told to stop: the same as the first one, with its own group's sequences. `began` is
    told of each step.

    A step's result is asked for once the next one runs, as the first rank does; rows that fail there fail here alike. Where this
    rank is the one that reports for its group, a thread of its own waits for results. In a pipeline another one takes messages,
    so that the first rank goes on to the next step while this one is at an earlier one.
    """
    decoder = msgspec.msgpack.Decoder(Message)
    receive = collectives.receive if stages_of(collectives.rank.mesh) == 1 else _Inbox(collectives).next
    group, tables = collectives.rank.group, no_tables()
    results = _Reporter(collectives) if collectives.rank.number in collectives.rank.reporters else _Results()
    with results:
        while True:
            message = decoder.decode(receive())
            if isinstance(message, Stop):
                return
            if isinstance(message, Admit):
                if message.group == group:
                    prompt, output = (np.frombuffer(tokens, np.int32) for tokens in (message.prompt, message.output))
                    executor.admit(message.slot, message.sampling, message.end_tokens, prompt, output)
                continue
            began(message.step_id)
            part = message.parts[group]
            batch = None if part is None else step_batch(message.step_id, part, tables)
            results.before_start()
            results.started(message.step_id, _start(executor, message.step_id, batch, message.common), batch is not None)


class _Inbox:
    """Messages of the first rank, taken as they come."""

    def __init__(self, collectives: Collectives) -> None:
        self._collectives = collectives
        self._arrived: SimpleQueue[bytes | Exception] = SimpleQueue()
        threading.Thread(target=self._take, name="messages", daemon=True).start()

    def next(self) -> bytes:
        """The next message. Raises what receiving it raised."""
        found = self._arrived.get()
        if isinstance(found, Exception):
            raise found
        return found

    def _take(self) -> None:
        stop = msgspec.msgpack.Decoder(Message)
        while True:
            try:
                message = self._collectives.receive()
            except Exception as error:  # handed over to the thread that runs steps
                self._arrived.put(error)
                return
            self._arrived.put(message)
            if isinstance(stop.decode(message), Stop):
                return


def _start(executor: RankExecutor, step_id: int, batch: StepBatch | None, common: CommonSize | None) -> Started:
    """A group's part of a step; without rows it does nothing, unless groups meet."""
    if batch is None and common is None:
        return lambda: StepResult(np.empty(0, np.int32), ())
    try:
        return executor.start(empty_step(step_id) if batch is None else batch, common)
    except RowsFailed as failed:
        return _raising(failed)


def _raising(error: RowsFailed) -> Started:
    def result() -> StepResult:
        raise error

    return result


def _even_if_rows_failed(started: Started) -> StepResult:
    """With tokens below 0 for rows without a usable result."""
    try:
        return started()
    except RowsFailed as failed:
        if failed.result is None:
            raise
        return failed.result


class _Results:
    """Of a rank that reports nothing: asked for once the next step runs, then forgotten."""

    def __init__(self) -> None:
        self._running: Started | None = None

    def __enter__(self) -> _Results:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def before_start(self) -> None:
        """Another step is about to start."""

    def started(self, step_id: int, started: Started, wanted: bool) -> None:
        """That step runs; `wanted`: the first rank waits for its result."""
        if self._running is not None:
            _even_if_rows_failed(self._running)
        self._running = started


class _Reporter(_Results):
    """Waits for results in a thread of its own and tells the first rank, so that the next step starts behind a running one."""

    def __init__(self, collectives: Collectives) -> None:
        super().__init__()
        self._collectives = collectives
        self._encoder = msgspec.msgpack.Encoder()
        self._thread = ThreadPoolExecutor(1, "reports")
        self._pending: list[Future[None]] = []

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def before_start(self) -> None:
        """A result must be asked for before the second step after it starts."""
        while len(self._pending) > 1:
            self._pending.pop(0).result()

    def started(self, step_id: int, started: Started, wanted: bool) -> None:
        self._pending.append(self._thread.submit(_or_exit, lambda: self._report(step_id, started, wanted)))

    def _report(self, step_id: int, started: Started, wanted: bool) -> None:
        result = _even_if_rows_failed(started)
        if wanted:
            self._collectives.report(self._encoder.encode(report_of(step_id, result)))


def _or_exit(work: Callable[[], None]) -> None:
    """The rank's own thread may wait for a message that never comes: a failure in this one ends the process."""
    try:
        work()
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
