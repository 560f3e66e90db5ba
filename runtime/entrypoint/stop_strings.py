"""Stop strings over arriving text: what may be the start of one is held back."""

from __future__ import annotations


class StopStrings:
    """Feed text with `push`; it returns the text safe to show and, once one is found, the stop string that ended it.

    The text shown ends before the stop string. With no stop strings everything passes.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._longest = max((len(stop) for stop in stops), default=0)
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        held = self._held + text
        found = [(position, stop) for stop in self._stops if (position := held.find(stop)) >= 0]
        if found:
            position, stop = min(found)
            self._held = ""
            return held[:position], stop
        keep = self._possible_start(held)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep], None

    def flush(self) -> str:
        """The held text: the generation ended before it became a stop string."""
        held, self._held = self._held, ""
        return held

    def _possible_start(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        for length in range(min(len(text), self._longest - 1), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
