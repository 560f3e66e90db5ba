"""Service tiers: what a request's `service_tier` means for its place in the queue and for when its tokens are due."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...plans.errors import UsageError
from .api_error import invalid


@dataclass(frozen=True)
class ServiceTier:
    """`priority` is added to the request's own (lower is earlier); the first token is due `deadline_ms` after the request's
    arrival, each further one `inter_token_ms` after the one before. None: no deadline; tokens as far apart as is
    usual with the plan."""

    priority: int = 0
    deadline_ms: float | None = None
    inter_token_ms: float | None = None


DEFAULT_TIERS: Mapping[str, ServiceTier] = {
    "priority": ServiceTier(-10, 1000.0),
    "default": ServiceTier(),
    "flex": ServiceTier(10, None, 1000.0),
}
_DEFAULT_NAMES = ("auto", "scale", "standard_only")
"""What clients of other services send for "as usual"."""

_FORM = re.compile(r"([A-Za-z][\w-]*)=(-?\d{1,9})(?:,(\d*\.?\d+)?(?:,(\d*\.?\d+)?)?)?")


def read_tiers(texts: Sequence[str]) -> dict[str, ServiceTier]:
    """The usual tiers, changed or added to by NAME=PRIORITY[,DEADLINE_MS[,INTER_TOKEN_MS]]. Raises UsageError."""
    tiers = dict(DEFAULT_TIERS)
    for text in texts:
        match = _FORM.fullmatch(text)
        times = [float(part) if part else None for part in match.groups()[2:]] if match else []
        if match is None or 0 in times:
            raise UsageError(
                "this is not a service tier",
                where="--service-tier",
                expected="NAME=PRIORITY[,DEADLINE_MS[,INTER_TOKEN_MS]]",
                got=text,
                fix="for example --service-tier priority=-10,1000,20",
            )
        tiers[match[1]] = ServiceTier(int(match[2]), *times)
    return tiers


def tier_of(name: str | None, tiers: Mapping[str, ServiceTier]) -> tuple[str, ServiceTier]:
    """The tier that a request asks for, and its name. Raises ApiError (400)."""
    own = "default" if name is None or (name in _DEFAULT_NAMES and name not in tiers) else name
    tier = tiers.get(own)
    if tier is None:
        raise invalid("service_tier", f"`service_tier` {own!r} is unknown here; served are {', '.join(sorted(tiers))} and auto")
    return own, tier
