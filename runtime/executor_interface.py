"""What the engine loop asks of an executor; runtime/executor.py is the real one. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from .protocol import SamplingParameters, TokenLogprob
from .scheduling.step import CommonSize, IntArray, Step, StepBatch

StepKind = TypeVar("StepKind", bound=Step, contravariant=True)


@dataclass(frozen=True, slots=True)
class StepResult:
    """`tokens`[logit rows] sampled by a step, in the order of `StepBatch.logit_request_ids`; `logprobs` alike, None
    for requests that asked for none."""

    tokens: IntArray
    logprobs: tuple[TokenLogprob | None, ...]


class RowsFailed(Exception):
    """Some rows of a step have no usable result (NaN logits); the others do.

    `result` covers all logit rows; what it holds at the failed requests' places is not used. With `result` None the
    other requests of the step fail too.
    """

    def __init__(self, request_ids: tuple[str, ...], message: str, result: StepResult | None = None) -> None:
        super().__init__(message)
        self.request_ids, self.message, self.result = request_ids, message, result


Started = Callable[[], StepResult]
"""A step that is under way: waits for it and gives its result.

Raises RowsFailed when only some requests are affected; any other error fails the whole step.
"""


class StepExecutor(Protocol[StepKind]):
    """Runs steps in the order they are started, always from one thread; any thread may wait for a step that was started."""

    def check(self, sampling: SamplingParameters, end_tokens: tuple[int, ...], prompt: IntArray) -> None:
        """Raise UsageError for a request that could not be admitted; on any thread, and without looking at the device."""
        ...

    def admit(
        self, slot: int, sampling: SamplingParameters, end_tokens: tuple[int, ...], prompt: IntArray, output: IntArray
    ) -> None:
        """Set up a sampling slot for a request before its first step; `prompt` and `output` (int32) are its tokens so far.

        `end_tokens` are all tokens that may end it (not to be sampled before `sampling.min_tokens`).
        """
        ...

    def start(self, step: StepKind, /) -> Started:
        """Start one step, whose result must be asked for before the second one after it is started.

        On the host it is done when this returns; on a device it runs behind those started before. Raises what the
        result would.
        """
        ...

    def close(self) -> None:
        """Free the device. Called once, also after an error."""
        ...


class Executor(StepExecutor[StepBatch], Protocol):
    """Of one group's steps."""


class RankExecutor(Executor, Protocol):
    """Of a rank that may be one of several groups."""

    def start(self, batch: StepBatch, common: CommonSize | None = None, /) -> Started:
        """With `common`, padded to that size: groups meet in the step's collectives, this one with few rows or none."""
        ...


Report = Callable[[str], None]
"""Called at the end of each phase of loading with the phase's name ("weights", "programs"); the listener keeps the time."""
