"""A closed loop of requests in the engine's own process: the engine's channel, without sockets."""

from __future__ import annotations

import time
from collections.abc import Iterator

from ..protocol import EngineCommand, EngineFailed, EngineNews, Rejected, Shutdown, StepNews, Submit, TokenEvent


class RequestTimes:
    """When a request was submitted and when its tokens came (seconds of a monotonic clock)."""

    def __init__(self, submitted: float) -> None:
        self.submitted = submitted
        self.tokens: list[float] = []
        self.ended = False
        self.error = ""

    @property
    def first_token(self) -> float:
        return self.tokens[0] - self.submitted

    @property
    def per_token(self) -> float:
        """Mean time per output token after the first; needs two tokens."""
        return (self.tokens[-1] - self.tokens[0]) / (len(self.tokens) - 1)

    @property
    def total(self) -> float:
        return self.tokens[-1] - self.submitted


class ClosedLoop:
    """A `Channel` that keeps `concurrency` requests in the engine until there are no more, then shuts it down."""

    def __init__(self, submits: Iterator[Submit], concurrency: int) -> None:
        self._submits, self._concurrency = submits, concurrency
        self._open = 0
        self.requests: dict[str, RequestTimes] = {}
        self.failure = ""

    def receive(self, timeout: float | None = 0.0) -> list[EngineCommand]:
        del timeout  # what there is to say is always known at once
        commands: list[EngineCommand] = []
        while self._open < self._concurrency and not self.failure:
            submit = next(self._submits, None)
            if submit is None:
                break
            self.requests[submit.request_id] = RequestTimes(time.monotonic())
            self._open += 1
            commands.append(submit)
        return commands or ([Shutdown()] if self._open == 0 else [])

    def send(self, news: EngineNews) -> None:
        match news:
            case StepNews():
                now = time.monotonic()
                for event in news.events:
                    self._take(event, now)
            case Rejected():
                self.requests[news.request_id].error = news.message
                self._open -= 1
            case EngineFailed():
                self.failure = news.message
            case _:
                pass

    def _take(self, event: TokenEvent, now: float) -> None:
        request = self.requests[event.request_id]
        request.tokens.extend(now for _ in event.tokens)
        if event.finish_reason is not None:
            request.ended = True
            request.error = event.error
            self._open -= 1
