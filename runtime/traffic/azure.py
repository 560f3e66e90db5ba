"""Azure's traces: a request a line, with its time and lengths alone. Nothing is known to be shared: each is its own session."""

from __future__ import annotations

import csv
from datetime import datetime
from pathlib import Path

import numpy as np

from .contents import named
from .errors import bad_place
from .lines import read_text
from .session import Prompt, Session, Turn

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def read_requests(path: Path) -> tuple[Session, ...]:
    """Raises TraceError."""
    rows = csv.reader(read_text(path).splitlines())
    head = next(rows, [])
    if tuple(name.strip().lstrip("\ufeff") for name in head) != COLUMNS:
        raise bad_place(f"{path}:1", ",".join(COLUMNS), ",".join(head))
    sessions: list[Session] = []
    first: datetime | None = None
    for row in rows:
        if not row:
            continue
        place, number = f"{path}:{rows.line_num}", len(sessions)
        time, prompt_tokens, output_tokens = _fields(place, row)
        first = first or time
        prompt = Prompt(np.array([named("azure", path.stem, number)], np.uint64), np.array([prompt_tokens]))
        turn = Turn(prompt, max(1, output_tokens), 0.0, max(0.0, (time - first).total_seconds()))
        sessions.append(Session(f"{path.stem}-{number}", (turn,)))
    return tuple(sessions)


def _fields(place: str, row: list[str]) -> tuple[datetime, int, int]:
    try:
        time, prompt_tokens, output_tokens = row
        # seven digits of a second, one more than Python takes
        fields = datetime.fromisoformat(time.strip()[:26]), int(prompt_tokens), int(output_tokens)
    except (ValueError, TypeError):
        raise bad_place(place, "a time and two numbers of tokens", ",".join(row)) from None
    if fields[0].tzinfo is not None or fields[1] < 1 or fields[2] < 0:
        raise bad_place(place, "a time without zone and at least 1 token in", ",".join(row))
    return fields
