"""What the engine loop asks of an executor; runtime/executor.py is the real one. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from .protocol import SamplingParameters, TokenLogprob
from .scheduling.step import IntArray, StepBatch


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


class Executor(Protocol):
    """Runs steps, one at a time, always from one thread."""

    def admit(
        self, slot: int, sampling: SamplingParameters, end_tokens: tuple[int, ...], prompt: IntArray, output: IntArray
    ) -> None:
        """Set up a sampling slot for a request before its first step; `prompt` and `output` (int32) are its tokens so far.

        `end_tokens` are all tokens that may end it (not to be sampled before `sampling.min_tokens`).
        """
        ...

    def run(self, batch: StepBatch) -> StepResult:
        """Run one step. Raises RowsFailed when only some requests are affected; any other error fails the whole step."""
        ...

    def close(self) -> None:
        """Free the device. Called once, also after an error."""
        ...


Report = Callable[[str], None]
"""Called at the end of each phase of loading with the phase's name ("weights", "programs"); the listener keeps the time."""
