"""What the engine remembers of one sequence beside the scheduler: its sampling, and when what happened."""

from __future__ import annotations

import time

from .protocol import Submit, TokenEvent, TokenLogprob
from .scheduling.request import Outcome


class EngineSequence:
    """`end_tokens` are all tokens that end it: the model's (unless `ignore_eos`) and the request's own."""

    def __init__(self, submit: Submit, model_end_tokens: tuple[int, ...]) -> None:
        self.submit = submit
        own = submit.sampling.stop_tokens
        self.end_tokens = tuple(dict.fromkeys(own if submit.sampling.ignore_eos else model_end_tokens + own))
        self._submitted = time.monotonic()
        self._admitted: float | None = None
        self._first_token: float | None = None

    def admitted(self) -> None:
        """It left the queue; coming back after a preemption does not count again."""
        if self._admitted is None:
            self._admitted = time.monotonic()

    def event(self, outcome: Outcome, logprob: TokenLogprob | None = None, error: str = "") -> TokenEvent:
        """The outcome as news. A stop token is named, but is no part of the output; durations come with the last event."""
        now = time.monotonic()
        if outcome.token is not None and self._first_token is None:
            self._first_token = now
        token = outcome.token if outcome.stop_token is None else None
        last = outcome.finish_reason is not None
        left_queue = self._admitted or now
        first_token = self._first_token or now
        return TokenEvent(
            request_id=outcome.request_id,
            tokens=() if token is None else (token,),
            finish_reason=outcome.finish_reason,
            stop_token=outcome.stop_token,
            cached_tokens=outcome.cached_tokens,
            logprobs=() if token is None or logprob is None else (logprob,),
            error=error,
            queue_seconds=left_queue - self._submitted if last else 0.0,
            prefill_seconds=first_token - left_queue if last else 0.0,
            decode_seconds=now - first_token if last else 0.0,
        )
