"""Stop strings over arriving text: what may be the start of one is held back."""

from __future__ import annotations

from .held_back import possible_start


class StopStrings:
    """Feed text with `push`; it returns the text safe to show and, once one is found, the stop string that ended it.

    The text shown ends before the stop string. With no stop strings everything passes.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        held = self._held + text
        found = [(position, stop) for stop in self._stops if (position := held.find(stop)) >= 0]
        if found:
            position, stop = min(found)
            self._held = ""
            return held[:position], stop
        keep = possible_start(held, self._stops)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep], None

    def flush(self) -> str:
        """The held text: the generation ended before it became a stop string."""
        held, self._held = self._held, ""
        return held
