"""What a user wants of the layout: how modules' weights lie, whether ranks share their rows. What is not pinned is searched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ...ir import module as modules
from ...ir.mlir import ir
from ...ir.placements import parse_shard
from ...plans.errors import UsageError
from .strategies import ROWS, Strategy, is_weight

CUT, REPLICATE = "cut", "replicate"

SURCHARGE = 1.0
"""Seconds a step that it costs when something lies whole although it is wanted cut: more than any layout."""


@dataclass(frozen=True)
class Pin:
    """`module` is a pattern of module paths, in which * stands for anything; layers are written as their template {i}.

    `weight` is "cut" (in whichever way, as far as the layout of the others allows), "replicate", or a placement such as
    "shard(0)". `rows` is "cut" (each rank does some of the rows, where that can be) or "replicate". "": as is cheapest.
    Along mesh axis `axis`, or along every one.
    """

    module: str
    weight: str = ""
    rows: str = ""
    axis: str = ""

    @property
    def summary(self) -> str:
        """On one line."""
        return " ".join(filter(None, (self.module, self.axis, self.weight, self.rows and f"rows={self.rows}")))

    def fits(self, operation: ir.Operation, strategy: Strategy) -> bool:
        """Whether the strategy places the operation's weights so."""
        found = [strategy.operands[at] for at, value in enumerate(operation.operands) if is_weight(value)]
        if self.weight == CUT:
            return any(parse_shard(placement) is not None for placement in found)
        return all(placement == self.weight for placement in found[:1])


@dataclass(frozen=True)
class Pins:
    """Pins in order; of several that match a module the last one counts."""

    pins: tuple[Pin, ...] = ()

    def along(self, axis: str) -> Pins:
        """Those that count along a mesh axis."""
        return Pins(tuple(pin for pin in self.pins if pin.axis in {"", axis}))

    def allowed(self, operation: ir.Operation, strategies: Sequence[Strategy]) -> Sequence[Strategy]:
        """The strategies that the pins allow. Raises UsageError where a placement is asked for that does not exist."""
        if self._rows(operation) == REPLICATE:
            strategies = [strategy for strategy in strategies if strategy.cut != ROWS]
        pin = self._weight(operation)
        if pin is None or pin.weight == CUT:
            return strategies
        allowed = [strategy for strategy in strategies if pin.fits(operation, strategy)]
        if not allowed:
            weights = [at for at, value in enumerate(operation.operands) if is_weight(value)][:1]
            possible = sorted({strategy.operands[at] for strategy in strategies for at in weights})
            raise UsageError(
                "a weight cannot lie as it is pinned",
                where=f"--placement, {pin.module}: {modules.label_of(operation)}",
                expected=", ".join(possible),
                got=pin.weight,
                fix="pin it otherwise, or leave it to the search",
            )
        return allowed

    def surcharge(self, operation: ir.Operation, strategy: Strategy) -> float:
        """Seconds a step beyond what the strategy takes: for weights or rows that lie otherwise than is wanted."""
        pin = self._weight(operation)
        whole = pin is not None and pin.weight == CUT and not pin.fits(operation, strategy)
        every = self._rows(operation) == CUT and strategy.cut != ROWS
        return SURCHARGE * (whole + every)

    def _weight(self, operation: ir.Operation) -> Pin | None:
        if not any(is_weight(value) for value in operation.operands):
            return None
        return self._last(operation, [pin for pin in self.pins if pin.weight])

    def _rows(self, operation: ir.Operation) -> str:
        found = self._last(operation, [pin for pin in self.pins if pin.rows])
        return "" if found is None else found.rows

    def _last(self, operation: ir.Operation, pins: Sequence[Pin]) -> Pin | None:
        label = modules.label_of(operation)
        return next((pin for pin in reversed(pins) if fnmatchcase(label, pin.module)), None)
