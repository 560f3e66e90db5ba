"""Where the time of a start goes: seconds by phase, from the moment the operating system started the process."""

from __future__ import annotations

import os
import time
from pathlib import Path


class StartupClock:
    """Phases follow each other without a gap; a phase named twice adds up. `phases` keeps their order."""

    def __init__(self) -> None:
        self.phases: dict[str, float] = {}
        self._since = self._start = time.monotonic() - process_age()

    def finish(self, phase: str) -> None:
        """The time since the last call belongs to `phase`."""
        now = time.monotonic()
        self.phases[phase] = self.phases.get(phase, 0.0) + now - self._since
        self._since = now

    @property
    def total(self) -> float:
        """Seconds since the process started."""
        return time.monotonic() - self._start


def process_age() -> float:
    """Seconds since this process started, to a hundredth; 0 where the system does not say (no Linux /proc)."""
    try:
        after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(after_name[19]) / os.sysconf("SC_CLK_TCK")  # field 22: clock ticks after boot
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)
    except (OSError, AttributeError, ValueError, IndexError):
        return 0.0
