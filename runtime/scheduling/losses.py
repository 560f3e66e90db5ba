"""How much computed work may be thrown away for the sake of who waits: a bucket of seconds that fills with time."""

from __future__ import annotations

_WINDOW_SECONDS = 60.0


class LossBudget:
    """Over any time T, in seconds, no more than share * (T + 60 s) is lost, and one loss more. With a share of 1, and without a
    clock, all is allowed."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._left, self._since = share * _WINDOW_SECONDS, 0.0

    def allows(self, now: float | None) -> bool:
        """Whether something may be lost now."""
        return now is None or self._share >= 1 or self._at(now) > 0

    def lose(self, now: float | None, seconds: float) -> None:
        if now is not None:
            self._left, self._since = self._at(now) - seconds, now

    def _at(self, now: float) -> float:
        return min(self._left + self._share * (now - self._since), self._share * _WINDOW_SECONDS)
