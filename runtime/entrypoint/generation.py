"""From the choices of a request to a stream of their news, with its times measured and its end made certain."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from ..protocol import TokenEvent
from .api_error import ApiError, unavailable
from .choice import Choice, Delta
from .engine_client import RequestStream
from .metrics import Metrics


@dataclass
class _Times:
    """Of one sequence, in seconds of the monotonic clock."""

    arrival: float
    latest_token: float | None = None


class Generation:
    """The news of a request's choices; iterate `deltas` once. `arrival` is `time.monotonic()` when the request came in.

    When all of them have ended well, the engine is told why the turn ended.
    """

    def __init__(self, stream: RequestStream, choices: Sequence[Choice], metrics: Metrics, arrival: float) -> None:
        self._stream, self._metrics = stream, metrics
        self._open = {choice.submit.request_id: choice for choice in choices}
        self._calls_tool = False
        self._times = {request_id: _Times(arrival) for request_id in self._open}

    async def deltas(self) -> AsyncGenerator[tuple[Choice, Delta], None]:
        """Until every choice has finished. Raises ApiError when the engine fails.

        However this ends - finished, failed, or closed because the client left - nothing stays behind in the engine.
        """
        try:
            async with aclosing(self._stream.events()) as events:
                async for event in events:
                    choice = self._open.get(event.request_id)
                    if choice is None:
                        continue
                    yield choice, self._feed(choice, event)
                    if not self._open:
                        return
        except ApiError:
            self._end_all("error")
            raise
        finally:
            self._end_all("abort")
            self._stream.close()

    def _feed(self, choice: Choice, event: TokenEvent) -> Delta:
        self._observe_tokens(self._times[event.request_id], len(event.tokens) + (event.stop_token is not None))
        if event.finish_reason == "error":
            raise ApiError(500, event.error or "the engine failed on this request", code="generation_failed")
        if event.finish_reason == "abort":
            raise unavailable("the server is shutting down", "draining")
        delta = choice.feed(event)
        if delta.finish_reason is not None:
            self._stream.abort(event.request_id)  # a stop string: the engine does not know of it
            self._end(choice, delta.finish_reason)
            self._calls_tool |= choice.calls_tool
            if not self._open:
                self._stream.end_turn(choice.submit.session_id, "tool_call" if self._calls_tool else "end_of_turn")
        return delta

    def _observe_tokens(self, times: _Times, count: int) -> None:
        """Tokens that came together share the time since the one before them."""
        if not count:
            return
        now = time.monotonic()
        if times.latest_token is None:
            self._metrics.time_to_first_token.observe(now - times.arrival)
            times.latest_token, count = now, count - 1
        for _ in range(count):
            self._metrics.inter_token_latency.observe((now - times.latest_token) / count)
        times.latest_token = now

    def _end(self, choice: Choice, reason: str) -> None:
        del self._open[choice.submit.request_id]
        times = self._times[choice.submit.request_id]
        self._metrics.finished(reason)
        self._metrics.end_to_end.observe(time.monotonic() - times.arrival)
        self._metrics.prompt_tokens.observe(choice.submit.prompt_tokens)
        self._metrics.generation_tokens.observe(choice.completion_tokens)

    def _end_all(self, reason: str) -> None:
        for choice in tuple(self._open.values()):
            self._end(choice, reason)
