"""The trace and the options that a replay is asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from ...plans.errors import UsageError
from ..traffic.contents import Vocabulary
from ..traffic.reading import read_trace
from ..traffic.session import Trace
from ..traffic.shaping import Shape, shaped
from .conversation import Answers, Fields
from .exchange import Api
from .http_stream import Server
from .models import served_model
from .replay import ReplayOptions
from .server_kinds import KINDS, NAMES, ServerKind, kind_of


def prepare(
    *,
    trace: str,
    trace_format: str | None,
    url: str,
    server_kind: str | None,
    model: str | None,
    api: Api,
    text: bool,
    agents: int,
    open_loop: bool,
    session_rate: float | None,
    time_scale: float,
    most_gap: float | None,
    context_scale: float,
    max_context: int | None,
    max_turns: int | None,
    sessions: int | None,
    seed: int | None,
    answers: Answers,
    priority: int,
    hints: bool,
    session_header: str,
    fields: Sequence[str],
    token_ids: tuple[int, int],
    accelerators: int,
    request_timeout: float,
    time_limit: float,
    api_key: str | None,
) -> tuple[Trace, ReplayOptions]:
    """Reads the trace, then asks the server for its model. Raises TokenspeedError."""
    server, extra, named = Server.parse(url, api_key), _fields(fields), _kind(server_kind)
    header = session_header.replace("-", "")
    if session_header and not (header.isascii() and header.isalnum()):
        raise UsageError("This is not a header.", where="--session-header", expected="letters, digits, -", got=session_header)
    traffic = read_trace(trace, trace_format)
    served = asyncio.run(served_model(server, request_timeout, model))
    shape = Shape(
        sessions=sessions,
        max_turns=max_turns,
        context_scale=context_scale,
        seed=seed,
        most_gap=most_gap,
        session_rate=session_rate,
    )
    traffic = shaped(traffic, shape, max_context or served.max_context)
    return traffic, ReplayOptions(
        server=server,
        kind=named or kind_of(served.owned_by),
        model=served,
        api=api,
        agents=None if open_loop else agents,
        time_scale=time_scale,
        priority=priority,
        text=text,
        answers=answers,
        hints=hints,
        session_header=session_header,
        fields=extra,
        vocabulary=Vocabulary(*token_ids),
        request_seconds=request_timeout,
        total_seconds=time_limit,
        accelerators=accelerators,
    )


def _kind(name: str | None) -> ServerKind | None:
    if name is not None and name not in NAMES:
        raise UsageError("This kind of server is not known.", where="--server", expected=", ".join(NAMES), got=name)
    return next((kind for kind in KINDS if kind.name == name), None)


def _fields(texts: Sequence[str]) -> Fields:
    fields: Fields = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            if not name or not equals:
                raise msgspec.DecodeError
            fields[name] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            raise UsageError("This is not a field.", where="--field", expected='NAME=JSON, such as user="me"', got=text) from None
    return fields
