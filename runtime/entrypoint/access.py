"""Who may ask, and whose prefix cache they see."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from .api_error import ApiError


class ApiKeys:
    """The keys that open the API; with none configured it is open to whoever reaches the socket."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = tuple(_digest(key) for key in keys if key)

    def authenticate(self, authorization: str | None, x_api_key: str | None = None) -> bytes:
        """The caller's identity (b"" when no keys are configured). Raises ApiError (401).

        Every configured key is compared, by digest and in constant time, so that timing tells nothing.
        """
        if not self._digests:
            return b""
        scheme, _, credential = (authorization or "").partition(" ")
        given = credential.strip() if scheme.lower() == "bearer" else (x_api_key or "")
        if not given:
            raise _refusal("no API key was given; send the header `Authorization: Bearer KEY`")
        digest = _digest(given)
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if not any(matches):
            raise _refusal("the API key is not valid")
        return digest


def cache_salt(identity: bytes, salt: str | None) -> str:
    """The prefix cache's tenant: callers share cached prompts only when both key and `cache_salt` are the same."""
    if not identity and not salt:
        return ""
    return hashlib.sha256(b"prefix cache\0" + identity + b"\0" + (salt or "").encode()).hexdigest()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _refusal(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
