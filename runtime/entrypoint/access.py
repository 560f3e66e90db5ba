"""Who may ask, whose share of the machine they draw on, and whose prefix cache they see."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from .api_error import ApiError
from .keys_file import TenantKey


@dataclass(frozen=True)
class Caller:
    """`identity` keeps cached prompts apart (one for each key), `tenant` names whose share of the machine a request draws on and
    whose sessions it may name (one or several keys). Both are empty where no keys are configured."""

    tenant: str = ""
    identity: bytes = b""


ANYONE = Caller()


class ApiKeys:
    """The keys that open the API; with none configured it is open to whoever reaches the socket.

    A key of `keys` is a tenant of its own, named by its digest; those of `named` are as their file says.
    """

    def __init__(self, keys: Sequence[str], named: Sequence[TenantKey] = ()) -> None:
        digests = [_digest(key) for key in keys if key]
        self._callers = [Caller(f"key-{digest.hex()[:12]}", digest) for digest in digests]
        self._callers += [Caller(key.tenant, _digest(key.key)) for key in named]

    def authenticate(self, authorization: str | None, x_api_key: str | None = None) -> Caller:
        """Who calls (ANYONE when no keys are configured). Raises ApiError (401).

        Every configured key is compared, by digest and in constant time, so that timing tells nothing.
        """
        if not self._callers:
            return ANYONE
        scheme, _, credential = (authorization or "").partition(" ")
        given = credential.strip() if scheme.lower() == "bearer" else (x_api_key or "")
        if not given:
            raise _refusal("no API key was given; send the header `Authorization: Bearer KEY`")
        digest = _digest(given)
        matches = [caller for caller in self._callers if hmac.compare_digest(digest, caller.identity)]
        if not matches:
            raise _refusal("the API key is not valid")
        return matches[0]


def cache_salt(identity: bytes, salt: str | None) -> str:
    """The prefix cache's tenant: callers share cached prompts only when both key and `cache_salt` are the same."""
    if not identity and not salt:
        return ""
    return hashlib.sha256(b"prefix cache\0" + identity + b"\0" + (salt or "").encode()).hexdigest()


def session_name(tenant: str, session: str) -> str:
    """The engine's name of a tenant's session, which no other tenant's can be (a tenant's name has no "/"); "" for none."""
    return f"{tenant}/{session}" if session else ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _refusal(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
