"""A plan as one rank of a pipeline sees it: its stage's part of the manifest alone."""

from __future__ import annotations

from collections.abc import Callable

from ..plans.program import Program
from ..plans.schema import Manifest
from ..plans.stages import of_rank
from .weights import PlanSource


class PlanOfRank:
    """A `PlanSource` with the manifest of a rank's stage."""

    def __init__(self, plan: PlanSource, rank: int) -> None:
        self._plan = plan
        self._manifest = of_rank(plan.manifest, rank)

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    def entry(self, name: str) -> memoryview:
        return self._plan.entry(name)

    def bundled(self, name: str) -> tuple[memoryview, Callable[[], None]]:
        return self._plan.bundled(name)

    def program(self, name: str) -> Program:
        return self._plan.program(name)
