"""The protocol of an arm: one JSON object per line in on standard input, one out on standard output; standard library only.

Requests, by their key "do":
    load     path, threads, options    -> weight_bytes, versions, note
    decode   batch, context, steps     -> seconds (list: one per step, after WARM_UP_STEPS that are not counted)
    prefill  tokens                    -> seconds (one prompt of random tokens, its first new token chosen)
Each answer has "error" where the request failed. Whatever a library prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any, Protocol

WARM_UP_STEPS = 3


class Peer(Protocol):
    """What an arm's program offers. Any exception becomes the answer's "error"."""

    def load(self, path: str, threads: int, options: dict[str, Any]) -> dict[str, Any]: ...

    def decode(self, batch: int, context: int, steps: int) -> list[float]: ...

    def prefill(self, tokens: int) -> float: ...


def serve(peer: Peer) -> None:
    """Answers until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = _answer(peer, request.pop("do"), request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _answer(peer: Peer, do: str, request: dict[str, Any]) -> dict[str, Any]:
    if do == "load":
        return peer.load(**request)
    if do == "decode":
        return {"seconds": peer.decode(**request)}
    if do == "prefill":
        return {"seconds": peer.prefill(**request)}
    raise ValueError(f"unknown request {do}")


def timed(step: Callable[[], object], steps: int) -> list[float]:
    """Seconds of each of `steps` steps, after WARM_UP_STEPS."""
    seconds = []
    for _ in range(WARM_UP_STEPS + steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return seconds[WARM_UP_STEPS:]


def versions(*distributions: str) -> dict[str, str]:
    return {name: metadata.version(name) for name in distributions}
