"""What a client may say of a session between its turns: why the last one ended, and that there is no further one.

Both are hints, and a session that is not known is not told apart from one that is.
"""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from .access import Caller, session_name
from .decoding import decode, read_body
from .request_types import EndTurnRequest
from .service import Service


async def end_turn(service: Service, request: Request, caller: Caller) -> ASGIApp:
    """POST /v1/sessions/ID/end_turn."""
    body = decode(await read_body(request, service.body_limit), EndTurnRequest)
    session: str = request.path_params["session"]
    service.engine.end_turn(session_name(caller.tenant, session), body.end)
    return _json({"id": session, "object": "session", "end": body.end})


async def close_session(service: Service, request: Request, caller: Caller) -> ASGIApp:
    """DELETE /v1/sessions/ID."""
    session: str = request.path_params["session"]
    service.engine.close_session(session_name(caller.tenant, session))
    return _json({"id": session, "object": "session", "deleted": True})


def _json(content: object) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
