"""Mooncake's traces: a request a line with global hash ids of 512-token blocks. Which requests are one conversation is not told,
so each is a session; that they share blocks is."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from .blocks import block_prompt
from .contents import derived, named
from .errors import bad_place
from .lines import objects
from .session import Session, Turn

BLOCK_TOKENS = 512


class _Request(msgspec.Struct):
    """`timestamp` in milliseconds."""

    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]


def read_requests(path: Path) -> tuple[Session, ...]:
    """Raises TraceError."""
    sessions, family, first = [], named("mooncake", shared=True), None
    for place, item in objects(path, _Request, "timestamp, input_length, output_length, hash_ids"):
        if item.input_length < 1 or item.output_length < 0:
            raise bad_place(place, "at least 1 token in, 0 out", f"input {item.input_length}, output {item.output_length}")
        if item.hash_ids and not 0 <= min(item.hash_ids) <= max(item.hash_ids) < 2**63:
            raise bad_place(place, "hash_ids from 0 to 2**63 - 1", f"{min(item.hash_ids)} to {max(item.hash_ids)}")
        first = item.timestamp if first is None else first
        number, ids = len(sessions), np.array(item.hash_ids, np.int64)
        prompt = block_prompt(derived(family, ids), BLOCK_TOKENS, item.input_length, ("mooncake", path.stem, number))
        turn = Turn(prompt, max(1, item.output_length), 0.0, max(0.0, (item.timestamp - first) / 1e3))
        sessions.append(Session(f"{path.stem}-{number}", (turn,)))
    return tuple(sessions)
