"""Errors as OpenAI clients expect them: {"error": {message, type, param, code}}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ApiError(Exception):
    """A request's end by an error. `status` is the HTTP status; `param` names the request's field at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def to_dict(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


_TYPES = {401: "authentication_error", 404: "not_found_error", 499: "client_closed_request", 503: "overloaded_error"}


def unavailable(message: str, code: str) -> ApiError:
    """503 with the second after which another try makes sense."""
    return ApiError(503, message, code=code, headers={"Retry-After": "1"})


def invalid(param: str, message: str, *, code: str | None = None) -> ApiError:
    """400 naming the field at fault."""
    return ApiError(400, message, param=param, code=code)
