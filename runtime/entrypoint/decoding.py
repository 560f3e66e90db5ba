"""HTTP bodies to request structs: size, content type, JSON and field types, each with its own error."""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from .api_error import ApiError, invalid

Body = TypeVar("Body", bound=msgspec.Struct)
_FIELD = re.compile(r"\$\.([A-Za-z_]\w*)((?:\[\d*\]|\[\.\.\.\]|\.\w+)*)")


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body, at most `limit` bytes. Raises ApiError: 413 when it is longer, 415 when it is not declared JSON.

    The content type is insisted on because a web page can send any other type to a server on the visitor's own
    machine without the browser asking that server first.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise ApiError(415, "send JSON with the header `Content-Type: application/json`", code="unsupported_media_type")
    too_long = ApiError(413, f"the request body is longer than {limit} bytes", code="request_too_large")
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limit:
        raise too_long
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > limit:
                raise too_long
    except ClientDisconnect:
        raise ApiError(499, "the client went away") from None
    return bytes(body)


def decode(body: bytes, kind: type[Body]) -> Body:
    """Raises ApiError (400): for what is not JSON, and for a wrong type or value with the field's name as `param`."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        message = str(error)
        raise invalid(_field(message) or "", message) if _field(message) else ApiError(400, message) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"the request body is not valid JSON: {error}", code="invalid_json") from None


def _field(message: str) -> str | None:
    """The field a msgspec message names: `... - at `$.max_tokens``, or "missing required field `x`"."""
    missing = re.search(r"missing required field `(\w+)`$", message)
    if missing:
        return missing[1]
    found = _FIELD.search(message)
    return found[1] + found[2] if found else None
