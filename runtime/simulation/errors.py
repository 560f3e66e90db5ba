"""What a user of the simulator can do wrong, and what only a bug can."""

from __future__ import annotations

from ...plans.errors import TokenspeedError


class SimulationError(TokenspeedError):
    """The plan or the traffic cannot be simulated."""


class SimulationStuck(SimulationError):
    """Requests are unfinished and no step can be scheduled: the live engine would end here too."""
