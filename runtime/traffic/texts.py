"""Requests with whole texts, as LMCache publishes them of a software agent: timestamp, input, output, session_id a line.

A text becomes spans of a few characters each, one token a span: texts that begin alike begin with the same tokens, and there are
about as many as a tokenizer would make. Who sends the text itself lets the server count.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from .contents import named
from .errors import bad_place
from .lines import objects
from .session import Prompt, Session, Turn

CHARACTERS_PER_TOKEN = 4
_SECONDS_PER_TOKEN = 0.02


class _Request(msgspec.Struct):
    """`timestamp` in microseconds."""

    timestamp: float
    input: str
    output: str
    session_id: str


def read_sessions(path: Path) -> tuple[Session, ...]:
    """How long answers took is not told: tokens at a usual rate, the rest of the time between requests is the client's. Raises
    TraceError."""
    requests: dict[str, list[_Request]] = {}
    for place, item in objects(path, _Request, "timestamp, input, output, session_id"):
        if not item.input or not item.output:
            raise bad_place(place, "an input and an output", f"{len(item.input)} and {len(item.output)} characters")
        requests.setdefault(item.session_id, []).append(item)
    for items in requests.values():
        items.sort(key=lambda item: item.timestamp)  # the lines are in the order of logging
    first = min((items[0].timestamp for items in requests.values()), default=0.0)
    return tuple(Session(name, tuple(_turns(items, first))) for name, items in requests.items())


def text_prompt(text: str) -> Prompt:
    pieces = [text[start : start + CHARACTERS_PER_TOKEN] for start in range(0, len(text), CHARACTERS_PER_TOKEN)]
    contents = {piece: named("text", piece, shared=True) for piece in set(pieces)}
    return Prompt(np.array([contents[piece] for piece in pieces], np.uint64), np.arange(1, len(pieces) + 1), text)


def _turns(items: list[_Request], first: float) -> list[Turn]:
    turns: list[Turn] = []
    for number, item in enumerate(items):
        gap = 0.0
        if number:
            gap = max(0.0, (item.timestamp - items[number - 1].timestamp) / 1e6 - turns[-1].output_tokens * _SECONDS_PER_TOKEN)
        tokens = -(-len(item.output) // CHARACTERS_PER_TOKEN)
        turns.append(Turn(text_prompt(item.input), tokens, gap, (item.timestamp - first) / 1e6))
    return turns
