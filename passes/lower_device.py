"""codegen for accelerators: an operation's templates as calls, and the templates kept for the plan's `device` section."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..plans.device_kernels import DEVICE, Exchange
from ..plans.program import Buffer, Call, RowCount, base_of
from ..targets.triton.kernel import DeviceOperation, DeviceSetting, FunctionTemplate

NewBuffer = Callable[[str, Buffer], str]
"""Makes room in the arena: (name to begin with, what is wanted) -> its name."""


@dataclass
class DeviceCalls:
    """Makes device calls for steps of one kind; `templates` are those of all calls so far, by name, and so are `exchanges`."""

    setting: DeviceSetting
    templates: dict[str, FunctionTemplate] = field(default_factory=dict)
    exchanges: dict[str, Exchange] = field(default_factory=dict)

    def calls(
        self, operation: DeviceOperation, operands: Sequence[str], label: str, room: NewBuffer, count: RowCount = "rows"
    ) -> list[Call]:
        """The calls of an operation whose operands are these names: inputs, outputs, what more it reads. `count`: its rows."""
        names: dict[int | str, str] = dict(enumerate(operands))
        for item in operation.intermediates:
            shape = tuple(count if extent == base_of(count) else extent for extent in item.shape)
            names[item.name] = room(item.name, Buffer("", item.dtype, shape))
        for exchange in operation.exchanges:
            self.exchanges[exchange.name] = exchange
            names[exchange.name] = exchange.name

        def named(operands: Sequence[int | str]) -> tuple[str, ...]:
            return tuple(names[operand] for operand in operands)

        made = [
            Call(step.function, named(step.inputs), named(step.outputs), dict(step.attributes), label)
            for step in operation.before
        ]
        for step in operation.steps:
            function = step.function
            self.templates[function.name] = function
            made.append(Call(DEVICE + function.name, named(step.inputs), named(step.outputs), {}, label))
        return made


def operands_of(calls: Sequence[Call]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Inputs and outputs of an operation's calls for the CPU as operands of one device operation (`DeviceOperation`): what the
    second reads before the caches, what the first reads and writes, what else the second reads."""
    if len(calls) == 1:
        return calls[0].inputs, calls[0].outputs
    store, attend = calls
    at = attend.inputs.index(store.outputs[0])
    queries, others = attend.inputs[:at], attend.inputs[at + len(store.outputs) :]
    return (*queries, *store.inputs, *store.outputs, *others), attend.outputs
