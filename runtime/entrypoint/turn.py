"""What a request says of the turn it is, beside its prompt: whose, of which session, how urgent, for how long wanted."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from .access import Caller, cache_salt, session_name
from .api_error import invalid
from .cache_control import longest, mark_seconds
from .request_types import LONGEST_NAME, GenerationRequest
from .service_tiers import ServiceTier, tier_of

SESSION_HEADER = "x-session-id"
_INT32_MAX = 2**31 - 1
_RETENTIONS = {"in_memory": None, "24h": 86400.0}


@dataclass(frozen=True)
class Turn:
    """As in `protocol.Submit`. `deadline` is a time of the monotonic clock; `service_tier` is the one that serves the request,
    None where it asked for none."""

    tenant: str = ""
    session_id: str = ""
    salt: str = ""
    priority: int = 0
    deadline: float | None = None
    inter_token_seconds: float | None = None
    retention_seconds: float | None = None
    service_tier: str | None = None

    def deadline_seconds(self) -> float | None:
        """From now on."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


def turn_of(
    request: GenerationRequest,
    headers: Mapping[str, str],
    caller: Caller,
    tiers: Mapping[str, ServiceTier],
    arrival: float,
    marked_seconds: float | None = None,
) -> Turn:
    """`marked_seconds` is what `cache_control` marks in the prompt ask for. Raises ApiError (400).

    What a request says itself comes before what its tier says; a deadline counts from `arrival`.
    """
    name, tier = tier_of(request.service_tier, tiers)
    deadline_ms = tier.deadline_ms if request.deadline_ms is None else request.deadline_ms
    inter_token_ms = tier.inter_token_ms if request.inter_token_ms is None else request.inter_token_ms
    return Turn(
        tenant=caller.tenant,
        session_id=session_name(caller.tenant, _session(request, headers)),
        salt=cache_salt(caller.identity, request.cache_salt),
        priority=max(-_INT32_MAX, min(_INT32_MAX, (request.priority or 0) + tier.priority)),
        deadline=None if deadline_ms is None else arrival + deadline_ms / 1000,
        inter_token_seconds=None if inter_token_ms is None else inter_token_ms / 1000,
        retention_seconds=longest(marked_seconds, mark_seconds(request.cache_control, "cache_control"), _retention(request)),
        service_tier=None if request.service_tier is None else name,
    )


def _session(request: GenerationRequest, headers: Mapping[str, str]) -> str:
    """The first that is given: what names a conversation, before what may name several."""
    header = headers.get(SESSION_HEADER, "")
    if len(header) > LONGEST_NAME:
        raise invalid("X-Session-Id", f"the header X-Session-Id is longer than {LONGEST_NAME} characters")
    return request.session_id or header or request.prompt_cache_key or request.user or ""


def _retention(request: GenerationRequest) -> float | None:
    asked = request.prompt_cache_retention
    if asked is None:
        return None
    if asked not in _RETENTIONS:
        raise invalid("prompt_cache_retention", f"`prompt_cache_retention` must be one of {', '.join(_RETENTIONS)}")
    return _RETENTIONS[asked]
