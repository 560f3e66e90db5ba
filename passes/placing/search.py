"""The cheapest strategies of all operations together along one axis: an integer program over the distinct layers.

A binary variable for each operation and strategy, exactly one of an operation's being 1; one for each change of a value's
placement, which is 1 where producer and a consumer disagree (as in Alpa, arXiv:2201.12023, section 4.2); one for each placement
of a weight, for its memory. Solved by HiGHS; it stops on counts, never on time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from ...ir import module as modules
from ...ir.mlir import ir
from ...ir.placements import at_rest
from ...ir.types import shape_of
from ...plans.errors import MemoryPlanError, UsageError
from ...plans.units import format_bytes
from ..select import logit_operations, times_of
from .costs import Prices, weight_bytes
from .pins import SURCHARGE, Pins
from .strategies import ROWS, Strategy, is_weight, strategies

ENDS = {"ts.yield", "func.return"}
"""Of a repeat's body, which hands on what the repeat carries, and of the step, whose result every rank has whole."""

LEAVES = {"ts.input", "ts.constant", "ts.weight"}
_NODES = 10_000
"""Of the branch and bound."""


@dataclass(frozen=True)
class Choice:
    """What was chosen for an operation, with the seconds of a step it takes, and the best other way, all else being as it is."""

    operation: str
    label: str
    axis: str
    strategy: Strategy
    seconds: float
    runner_up: Strategy | None
    runner_up_seconds: float | None


def search(module: ir.Module, axis: str, prices: Prices, pins: Pins) -> dict[ir.Operation, Choice]:
    """A choice for every operation of the step, in program order.

    Raises UsageError when nothing satisfies the pins, MemoryPlanError when no rank's part of the weights fits in its memory.
    """
    problem = _Problem(axis, prices, pins)
    block = modules.step_block(module)
    after_gather = logit_operations(block)
    for operation in modules.walk(block):
        if operation.name not in ENDS | LEAVES:
            problem.add(operation, operation in after_gather)
    for operation in modules.walk(block):
        problem.connect(operation)
    problem.weigh()
    return problem.solve()


@dataclass
class _Problem:
    axis: str
    prices: Prices
    pins: Pins
    costs: list[float] = field(default_factory=list)
    binary: list[bool] = field(default_factory=list)
    rows: list[dict[int, float]] = field(default_factory=list)
    lower: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    ways: dict[ir.Operation, list[tuple[int, Strategy]]] = field(default_factory=dict)
    gathered: dict[ir.Operation, bool] = field(default_factory=dict)
    changes: dict[tuple[ir.Value, str, str], int | None] = field(default_factory=dict)
    stored: dict[tuple[ir.Value, str], int] = field(default_factory=dict)
    sizes: dict[int, float] = field(default_factory=dict)
    """Bytes of a rank's part of a weight, by the variable that says that it lies so."""

    def add(self, operation: ir.Operation, after_gather: bool) -> None:
        """An operation with its strategies, one of which is taken."""
        self.gathered[operation] = after_gather
        found = self.ways.setdefault(operation, [])
        for strategy in self.pins.allowed(operation, strategies(operation, self.axis, self.prices.ranks)):
            if strategy.cut == ROWS and after_gather:
                continue  # there are so few of them
            carries = operation.name == "ts.repeat"
            seconds = 0.0 if carries else times_of(operation) * self.prices.of_operation(operation, strategy, after_gather)
            seconds += self.pins.surcharge(operation, strategy)
            found.append((self._variable(seconds, binary=True), strategy))
        self._constrain({variable: 1.0 for variable, _ in found}, 1.0, 1.0)

    def connect(self, operation: ir.Operation) -> None:
        """What changes of placement follow from an operation's strategies and those of its operands' makers."""
        if operation.name in LEAVES:
            return
        for position, value in enumerate(operation.operands):
            deciding = decider(operation)
            wanted: dict[str, Sequence[int] | None] = {at_rest(shape_of(value), self.axis): None}
            if deciding in self.ways:
                wanted = self._by_placement(deciding, lambda strategy, at=position: strategy.operands[at])
            if is_weight(value):
                self._store(value, wanted)
                continue
            for before, makers in self._made(value).items():
                for after, users in wanted.items():
                    if before != after:
                        self._change(operation, value, before, after, makers, users)

    def weigh(self) -> None:
        """A price on memory."""
        step = sum(min(self.costs[variable] for variable, _ in found) for found in self.ways.values() if found)
        for (value, placement), variable in self.stored.items():
            maker = modules.made_by(value)
            self.sizes[variable] = weight_bytes(value, placement, self.prices.ranks) * times_of(maker)
            self.costs[variable] += self.prices.of_memory(step, self.sizes[variable])

    def solve(self) -> dict[ir.Operation, Choice]:
        # of two ways that cost the same, the one that is named first; the solver takes for the same what differs by a millionth
        scale = max((cost for cost in self.costs if cost < SURCHARGE), default=1.0) or 1.0
        costs = np.array(self.costs) / scale + 1e-9 * np.arange(len(self.costs)) * np.array(self.binary)
        values = self._solution(costs, self.prices.room)
        if values is None:
            self._refuse()
        taken = {variable for variable, value in enumerate(values) if value > 0.5}
        chosen = {operation: next(way for way in ways if way[0] in taken)[1] for operation, ways in self.ways.items()}
        return {operation: self._choice(operation, chosen) for operation in self.ways}

    def _solution(self, costs: NDArray[np.float64], memory: int | None) -> NDArray[np.float64] | None:
        """Values of the variables at the least costs, weights within `memory` bytes; None where there are none."""
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array

        rows, lower, upper = self.rows, self.lower, self.upper
        if memory is not None and self.sizes:
            rows, lower, upper = [*rows, self.sizes], [*lower, -np.inf], [*upper, float(memory)]
        places = [(row, column, weight) for row, entries in enumerate(rows) for column, weight in entries.items()]
        at, columns, weights = (list(part) for part in zip(*places, strict=True))
        matrix = csr_array((weights, (at, columns)), shape=(len(rows), len(costs)))
        found = milp(
            costs,
            integrality=np.array(self.binary, dtype=int),
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(matrix, np.array(lower), np.array(upper)),  # pyright: ignore[reportArgumentType]
            options={"node_limit": _NODES, "mip_rel_gap": 0.0},
        )
        return found.x

    def _refuse(self) -> NoReturn:
        """Is it memory, or what is pinned?"""
        bytes_of = np.array([self.sizes.get(variable, 0.0) for variable in range(len(self.costs))])
        least = self._solution(bytes_of, None)
        if least is not None and self.prices.memory is not None:
            raise MemoryPlanError(
                "a rank's part of the weights does not fit in its memory",
                where="--target, --memory",
                expected=f"at least {format_bytes(int(bytes_of @ least) // self.prices.further)}, for weights alone",
                got=f"{format_bytes(self.prices.memory)}, of each of {self.prices.ranks * self.prices.further} ranks",
                fix="more devices (--target NAME:DEVICES), or smaller weights (--quantize)",
            )
        raise UsageError(
            "no layout of the model over these ranks satisfies what is pinned",
            where="--placement",
            got=f"{self.prices.ranks} ranks along {self.axis}",
            fix="pin less, or otherwise",
        )

    def _choice(self, operation: ir.Operation, chosen: Mapping[ir.Operation, Strategy]) -> Choice:
        """With the runner-up: the best other strategy where all other operations stay as they are."""

        def seconds(variable: int, strategy: Strategy) -> float:
            return self.costs[variable] + self._changes_around(operation, strategy, chosen)

        ranked = sorted((seconds(variable, strategy), at) for at, (variable, strategy) in enumerate(self.ways[operation]))
        ways = [strategy for _, strategy in self.ways[operation]]
        own = next(cost for cost, at in ranked if ways[at] == chosen[operation])
        other = next(((cost, ways[at]) for cost, at in ranked if ways[at] != chosen[operation] and np.isfinite(cost)), None)
        label = modules.label_of(operation)
        return Choice(operation.name, label, self.axis, chosen[operation], own, other and other[1], other and other[0])

    def _changes_around(self, operation: ir.Operation, strategy: Strategy, chosen: Mapping[ir.Operation, Strategy]) -> float:
        total = 0.0
        for position, value in enumerate(operation.operands):
            if not is_weight(value):
                total += self._price(operation, value, self._made_as(value, chosen), strategy.operands[position])
        for result, placement in zip(operation.results, strategy.results, strict=True):
            wanted: dict[str, ir.Operation] = {}
            for user, position in modules.readers_of(result):
                deciding = decider(user)
                at_end = at_rest(shape_of(result), self.axis)
                wanted.setdefault(chosen[deciding].operands[position] if deciding in chosen else at_end, user)
            total += sum(
                self._price(user, result, placement, after) for after, user in sorted(wanted.items(), key=lambda i: i[0])
            )
        return total

    def _made_as(self, value: ir.Value, chosen: Mapping[ir.Operation, Strategy]) -> str:
        maker, at = _source(value)
        return chosen[maker].results[at] if maker in chosen else at_rest(shape_of(value), self.axis)

    def _price(self, user: ir.Operation, value: ir.Value, before: str, after: str) -> float:
        if before == after:
            return 0.0
        found = self.prices.of_change(value, before, after, self._is_gathered(value))
        return np.inf if found is None else found * times_of(user)

    def _change(
        self, user: ir.Operation, value: ir.Value, before: str, after: str, makers: Sequence[int], users: Sequence[int] | None
    ) -> None:
        """No `makers`: the value always lies so; `users` None: an end of a block, which always wants it so."""
        key = value, before, after
        if key not in self.changes:
            seconds = self.prices.of_change(value, before, after, self._is_gathered(value))
            self.changes[key] = None if seconds is None else self._variable(seconds * times_of(user), binary=False)
        variable = self.changes[key]
        entries = dict.fromkeys((*makers, *(users or ())), 1.0)
        limit = bool(makers) + (users is not None) - 1.0
        if variable is not None:
            entries[variable] = -1.0
        self._constrain(entries, -np.inf, limit)

    def _store(self, value: ir.Value, wanted: Mapping[str, Sequence[int] | None]) -> None:
        for placement, users in wanted.items():
            variable = self.stored.setdefault((value, placement), -1)
            if variable < 0:
                variable = self.stored[value, placement] = self._variable(0.0, binary=False)
            self._constrain({**dict.fromkeys(users or (), 1.0), variable: -1.0}, -np.inf, 0.0)

    def _made(self, value: ir.Value) -> Mapping[str, Sequence[int]]:
        """Placements that a value may be made in, each with the variables that say so; none: it always is."""
        maker, at = _source(value)
        if maker not in self.ways:
            return {at_rest(shape_of(value), self.axis): ()}
        made = self._by_placement(maker, lambda strategy: strategy.results[at])
        return {placement: found or () for placement, found in made.items()}

    def _by_placement(self, operation: ir.Operation, placement: Callable[[Strategy], str]) -> dict[str, Sequence[int] | None]:
        found: dict[str, Sequence[int] | None] = {}
        for variable, strategy in self.ways[operation]:
            known = placement(strategy)
            found[known] = [*(found.get(known) or ()), variable]
        return found

    def _is_gathered(self, value: ir.Value) -> bool:
        maker = modules.maker_of(value)
        return maker is not None and self.gathered.get(maker, False)

    def _variable(self, cost: float, *, binary: bool) -> int:
        self.costs.append(cost)
        self.binary.append(binary)
        return len(self.costs) - 1

    def _constrain(self, entries: dict[int, float], lower: float, upper: float) -> None:
        self.rows.append(entries)
        self.lower.append(lower)
        self.upper.append(upper)


def decider(operation: ir.Operation) -> ir.Operation:
    """Whose strategy says what an operation's operands are like: a repeat's, of what its body ends with."""
    return operation.parent if operation.name == "ts.yield" else operation


def _source(value: ir.Value) -> tuple[ir.Operation, int]:
    """Whose strategy says how a value is made, and which of its results it is: a repeat's, of what its body begins with."""
    maker = modules.maker_of(value)
    if maker is not None:
        return maker, list(maker.results).index(value)
    argument = ir.BlockArgument(value)
    return argument.owner.owner, argument.arg_number
