"""Read a trace of any known format from a file or a folder of files, or draw one from a word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from . import azure, claude_code, mooncake, texts
from .errors import FORMATS, TraceError
from .lines import read_text
from .session import Session, Trace
from .synthetic import draw_trace

SYNTHETIC = "synthetic"

_Reader = Callable[[Path], tuple[Session, ...]]
_READERS: dict[str, _Reader] = {
    "claude-code": lambda path: (claude_code.read_session(path),),
    "mooncake": mooncake.read_requests,
    "azure": azure.read_requests,
    "texts": texts.read_sessions,
}
_ENDINGS = (".json", ".jsonl", ".csv")


def read_trace(source: str | Path, kind: str | None = None) -> Trace:
    """`kind` is one of FORMATS, or guessed for each file by its name and first line. Files of a folder are read by name.
    `synthetic:sessions=N,seed=N` instead of a path draws sessions.

    Raises TraceError, also when there is no session in it.
    """
    if str(source).partition(":")[0] == SYNTHETIC:
        return _drawn(str(source))
    if kind is not None and kind not in FORMATS:
        raise TraceError("This format of traces is not known.", where=str(source), expected=", ".join(FORMATS), got=kind)
    path = Path(source)
    files = sorted(item for item in path.iterdir() if item.suffix in _ENDINGS) if path.is_dir() else [path]
    if not files:
        raise TraceError("The folder holds no trace.", where=str(path), expected="files *.json, *.jsonl or *.csv")
    sessions = [session for file in files for session in _READERS[kind or _guess(file)](file)]
    if not sessions:
        raise TraceError("The trace holds no request.", where=str(path), expected="at least one")
    names: dict[str, int] = {}
    for session in sessions:
        names[session.session_id] = names.get(session.session_id, 0) + 1
    twice = next((name for name, count in names.items() if count > 1), None)
    if twice is not None:
        raise TraceError("Two files hold the same session.", where=str(path), expected="session ids once each", got=twice)
    return Trace(str(source), tuple(sessions))


def _drawn(source: str) -> Trace:
    fields = {"sessions": 8, "seed": 0}
    for part in filter(None, source.partition(":")[2].split(",")):
        name, _, value = part.partition("=")
        if name not in fields or not value.isdecimal() or len(value) > 9:
            raise TraceError(
                "This is no description of synthetic sessions.",
                where=source,
                expected=f"{SYNTHETIC}:sessions=N,seed=N",
                got=part,
            )
        fields[name] = int(value)
    return draw_trace(max(1, fields["sessions"]), fields["seed"])


def _guess(path: Path) -> str:
    if path.suffix == ".json":
        return "claude-code"
    if path.suffix == ".csv":
        return "azure"
    first = next((line for line in read_text(path).split("\n") if line.strip()), "")
    if '"input_length"' in first:
        return "mooncake"
    if '"input"' in first:
        return "texts"
    raise TraceError(
        "The format of this trace cannot be told.",
        where=f"{path}:1",
        expected="the first line of a trace that is " + " or ".join(FORMATS),
        got=first[:200],
        fix="name it with --format",
    )
