"""Who has had how much of the machine: service by session, which fades, and by tenant, by weight. Seconds as predicted."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

_MOST_SESSIONS = 4096
_MOST_TENANTS = 4096
_HALF_LIFE_SECONDS = 60.0


class SessionService:
    """Seconds that sessions attained lately: what was given a minute ago counts half. Keeps those that were served last."""

    def __init__(self) -> None:
        self._accounts: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._accounts)

    def add(self, session: str, seconds: float, now: float) -> None:
        if session:
            self._accounts[session] = (self.attained(session, now) + seconds, now)
            self._accounts.move_to_end(session)
            if len(self._accounts) > _MOST_SESSIONS:
                self._accounts.popitem(last=False)

    def attained(self, session: str, now: float) -> float:
        seconds, since = self._accounts.get(session, (0.0, now))
        return seconds * 0.5 ** ((now - since) / _HALF_LIFE_SECONDS)

    def forget(self, session: str) -> None:
        self._accounts.pop(session, None)


class TenantShares:
    """Start-time fair queueing (Goyal, Vin and Cheng, 1996) over tenants. `weights` are 1 where none is given.

    A tenant's *tag* is its service divided by its weight. The tenant that is served next is the one of the lowest tag; its tag
    grows with what it is predicted to take, and is put right when that is known. Who comes back has no credit from idle time:
    its tag is at least the highest one that was ever served.
    """

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        if weights and not all(0 < weight < float("inf") for weight in weights.values()):
            raise ValueError(f"weights of tenants are positive numbers; got {dict(weights)}")
        self._weights = dict(weights or {})
        self._tags: dict[str, float] = {}
        self._busy: dict[str, int] = {}
        self.served = 0.0

    def __len__(self) -> int:
        return len(self._tags)

    def tag(self, tenant: str) -> float:
        return self._tags.get(tenant, self.served)

    def enter(self, tenant: str) -> None:
        """A request of the tenant came."""
        if tenant not in self._busy:
            self._tags[tenant] = max(self.tag(tenant), self.served)
        self._busy[tenant] = self._busy.get(tenant, 0) + 1
        if len(self._tags) > _MOST_TENANTS:
            self._sweep()

    def start(self, tenant: str, seconds: float) -> float:
        """A request of the tenant is admitted, and will take so long; gives the tag it starts with."""
        start = self.tag(tenant)
        self.served = max(self.served, start)
        self._tags[tenant] = start + seconds / self._weights.get(tenant, 1.0)
        return start

    def correct(self, tenant: str, seconds: float) -> None:
        """What a request took differs by so much from what was taken into account."""
        if tenant in self._tags:
            self._tags[tenant] += seconds / self._weights.get(tenant, 1.0)

    def leave(self, tenant: str) -> None:
        """A request of the tenant ended."""
        self._busy[tenant] -= 1
        if not self._busy[tenant]:
            del self._busy[tenant]

    def _sweep(self) -> None:
        """Idle tenants that nobody is behind are as good as new ones; then those that are least ahead go."""
        ahead = {tenant: tag for tenant, tag in self._tags.items() if tenant in self._busy or tag > self.served}
        idle = sorted((tag, tenant) for tenant, tag in ahead.items() if tenant not in self._busy)
        for _, tenant in idle[: max(0, len(ahead) - _MOST_TENANTS // 2)]:
            del ahead[tenant]
        self._tags = ahead
