"""Recurrent layers: states of fixed size by sampling slot, carried along each sequence row by row."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...plans.aten_functions import ATEN_FUNCTIONS
from ...plans.recurrence_body import BodyCall, RecurrenceBody, Value, decode_body
from ..device_arrays import TORCH_TYPES
from .aten import arguments_of, arrange, layouts_of, problem_of, takes_device
from .base import Launch, Operands
from .context import Context

_CHECKED_ROWS = 3
"""Rows that a body is tried with at preparation, without memory."""


def recurrence(operands: Operands) -> Launch:
    """(rows[R, ...]..., others..., row_slots[R], positions[R], sequence_starts[S+1], counts[4]) -> (out[R, ...], states...).

    For each sequence, row by row: `body` (plans/recurrence_body.py) on the row, the others and the states at the sequence's slot,
    which it replaces; zero states at position 0. Rows of several sequences go together: the t-th rows of all that have one. What
    other slots hold stays as it is, and rows of `out` past counts[0] too.
    """
    body = decode_body(operands.attributes.get("body"), operands.label or operands.function)
    inputs, (out, *states) = operands.inputs, operands.outputs or [torch.empty(0)]
    count = len(body.inputs)
    operands.require(len(inputs) == count + 4 and len(states) == len(body.states), "inputs and states of the body")
    given, (row_slots, positions, starts, counts) = inputs[:count], inputs[count:]
    operands.typed(torch.int32, row_slots, positions, starts, counts)
    for tensor, value in [*zip(given, body.inputs, strict=True), (out, body.value(body.out))]:
        operands.require(_fits(tensor, value, len(row_slots)), f"{value.dtype} {list(value.shape)} of {len(row_slots)} rows")
    for tensor, value in zip(states, body.states, strict=True):
        operands.require(_fits(tensor, value, len(states[0])), f"states of {value.dtype} {list(value.shape)}")
    context = operands.context
    step = context.shared(("recurrence", operands.attributes["body"]), _Step, lambda: _Step(body, operands))
    turns = turns_of(context, row_slots, positions, starts, counts, out.device)
    of_rows, others = given[: body.rows], given[body.rows :]

    def run() -> None:
        for turn in turns.refreshed(context.step):
            held = [state.index_select(0, turn.slots) for state in states]
            if turn.fresh is not None:
                for state in held:
                    state.masked_fill_(turn.fresh.view(-1, *(1 for _ in state.shape[1:])), 0)
            taken = [value.index_select(0, turn.rows) for value in of_rows]
            made, new = step.run([*taken, *others, *held], len(turn.rows))
            out.index_copy_(0, turn.rows, made)
            for state, value in zip(states, new, strict=True):
                state.index_copy_(0, turn.slots, value)

    return run


def _fits(tensor: Tensor, value: Value, rows: int) -> bool:
    return tuple(tensor.shape) == _shape(value, rows) and tensor.dtype == TORCH_TYPES[value.dtype]


def _shape(value: Value, rows: int) -> tuple[int, ...]:
    return (rows, *value.shape) if value.of_rows else value.shape


@dataclass(frozen=True)
class Turn:
    """One row of each of several sequences: `rows` of the step, `slots`, and which are at position 0 (`fresh`), if any."""

    rows: Tensor
    slots: Tensor
    fresh: Tensor | None


class Turns:
    """The turns of a step in order, worked out once for all layers, on the host; their indices are then put on `device`."""

    def __init__(self, row_slots: Tensor, positions: Tensor, starts: Tensor, counts: Tensor, device: torch.device) -> None:
        self._inputs, self._device = (row_slots, positions, starts, counts), device
        self._step = -1
        self._turns: list[Turn] = []

    def refreshed(self, step: int) -> list[Turn]:
        if step != self._step:
            self._step, self._turns = step, self._made()
        return self._turns

    def _made(self) -> list[Turn]:
        row_slots, positions, starts, counts = self._inputs
        sequences = int(counts[2])
        first, lengths = starts[:sequences].long(), (starts[1 : sequences + 1] - starts[:sequences]).long()
        turns = []
        for at in range(int(lengths.max()) if sequences else 0):
            rows = first[lengths > at] + at
            fresh = positions[rows] == 0
            turns.append(Turn(rows, row_slots[rows].long(), fresh if bool(fresh.any()) else None))
        return turns if self._device.type == "cpu" else self._moved(turns)

    def _moved(self, turns: list[Turn]) -> list[Turn]:
        """One copy for the indices of all turns."""
        if not turns:
            return turns
        sizes = [len(turn.rows) for turn in turns]
        rows, slots = (
            self._put(torch.cat(parts)).split(sizes) for parts in ([turn.rows for turn in turns], [turn.slots for turn in turns])
        )
        return [
            Turn(row, slot, None if turn.fresh is None else self._put(turn.fresh))
            for turn, row, slot in zip(turns, rows, slots, strict=True)
        ]

    def _put(self, indices: Tensor) -> Tensor:
        """On the device, without waiting for what it does."""
        return indices.pin_memory().to(self._device, non_blocking=True)


def turns_of(
    context: Context, row_slots: Tensor, positions: Tensor, starts: Tensor, counts: Tensor, device: torch.device
) -> Turns:
    key = ("turns", row_slots.data_ptr(), len(row_slots))
    return context.shared(key, Turns, lambda: Turns(row_slots, positions, starts, counts, device))


class _Step:
    """A body whose calls are checked and ready to run on any number of rows."""

    def __init__(self, body: RecurrenceBody, operands: Operands) -> None:
        self._body = body
        known = [_on_meta(value) for value in (*body.inputs, *body.states)]
        self._calls = []
        for call in body.calls:
            result = _on_meta(call.result)
            given = Operands(
                call.function,
                [known[number] for number in call.operands],
                [result],
                {"arguments": call.arguments, "layouts": call.layouts},
                operands.context,
                operands.label,
                operands.layer,
            )
            self._calls.append(_prepared(call, given, operands.outputs[0].device))
            known.append(result)
        known_count = len(body.inputs) + len(body.states)
        last = {number: at for at, call in enumerate(body.calls) for number in call.operands}
        last |= dict.fromkeys((body.out, *body.new_states), len(body.calls))
        self._dead = [
            [number for number in {*call.operands, known_count + at} if last.get(number, -1) <= at and number >= known_count]
            for at, call in enumerate(body.calls)
        ]

    def run(self, values: list[Any], rows: int) -> tuple[Tensor, list[Tensor]]:
        """The result and the new states from inputs and states; values are let go of where they are read last."""
        for call, dead in zip(self._calls, self._dead, strict=True):
            values.append(call(values, rows))
            for number in dead:
                values[number] = None
        return values[self._body.out], [values[number] for number in self._body.new_states]


def _on_meta(value: Value) -> Tensor:
    return torch.empty(_shape(value, _CHECKED_ROWS), dtype=TORCH_TYPES[value.dtype], device="meta")


Filler = Callable[[Sequence[Tensor], int], Any]


def _prepared(call: BodyCall, given: Operands, device: torch.device) -> Callable[[Sequence[Any], int], Tensor]:
    """The call as a function of all values so far and the number of rows. Refuses one that does not give its declared result."""
    _, operation, overload = ATEN_FUNCTIONS[call.function].split(".")
    function = getattr(getattr(torch.ops.aten, operation), overload)
    *layouts, layout = layouts_of(given)
    inputs = [arrange(given, tensor, how) for tensor, how in zip(given.inputs, layouts, strict=True)]
    checked = arguments_of(given, inputs, layouts)
    problem = problem_of(function, checked, arrange(given, given.outputs[0], layout))
    if problem:
        given.refuse(f"a call that gives {call.result.dtype} {list(call.result.shape)}", problem)
    found, result = json.loads(call.arguments), checked[2]
    arguments = [_filler(item) for item in found["args"]]
    keywords = {name: _filler(item) for name, item in found["kwargs"].items()}
    placed = [(number, _placing(how)) for number, how in zip(call.operands, layouts, strict=True)]
    back = _placing_back(layout)
    if takes_device(function) and device.type != "cpu":
        keywords["device"] = lambda _operands, _rows: device

    def run(values: Sequence[Any], rows: int) -> Tensor:
        operands = [values[number] if place is None else place(values[number]) for number, place in placed]
        made = function(
            *[fill(operands, rows) for fill in arguments], **{name: fill(operands, rows) for name, fill in keywords.items()}
        )
        made = made if result is None else made[result]
        return made if back is None else back(made)

    return run


def _filler(item: Any) -> Filler:
    """An argument, already checked, as a function of the call's operands and the number of rows."""
    if isinstance(item, list):
        parts = [_filler(part) for part in item]
        return lambda operands, rows: [part(operands, rows) for part in parts]
    if isinstance(item, dict):
        if "operand" in item:
            number = item["operand"]
            return lambda operands, _rows: operands[number]
        if "symbol" in item:
            return lambda _operands, rows: rows
        dtype = TORCH_TYPES[item["dtype"]]
        return lambda _operands, _rows: dtype
    return lambda _operands, _rows: item


def _placing(layout: str) -> Callable[[Tensor], Tensor] | None:
    """How a value of rows is turned to stand as ATen has it; None where it stands so already."""
    letters = layout.removeprefix("b")
    if layout == "-" or layout.startswith("t"):
        return None
    axis, batched = letters.index("t"), layout != letters
    return lambda value: value.movedim(0, axis).unsqueeze(0) if batched else value.movedim(0, axis)


def _placing_back(layout: str) -> Callable[[Tensor], Tensor] | None:
    letters = layout.removeprefix("b")
    if layout == "-" or layout.startswith("t"):
        return None
    axis, batched = letters.index("t"), layout != letters
    return lambda value: (value.squeeze(0) if batched else value).movedim(axis, 0)
