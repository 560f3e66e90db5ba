"""Recurrences: shape rule and meaning of `ts.recurrence`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .aten_reference import run_aten
from .attributes import int_attribute
from .mlir import ir
from .types import dtype_of, shape_of

States = dict[tuple[int, int], list[Tensor]]
"""(layer, sequence) -> its states, without a dimension of rows."""


def step_block(recurrence: ir.Operation) -> ir.Block:
    return recurrence.regions[0].blocks[0]


def state_arguments(recurrence: ir.Operation) -> list[ir.Value]:
    """The body's arguments that are states."""
    return list(step_block(recurrence).arguments)[len(recurrence.operands) :]


def check_recurrence(operation: ir.Operation) -> str | None:
    """What is wrong with the operands, the body's arguments or what it ends with; None if they fit together."""
    operands, block = list(operation.operands), step_block(operation)
    rows = int_attribute(operation, "rows")
    if not 1 <= rows <= len(operands):
        return f"has {rows} operands of rows among {len(operands)}"
    given = [(dtype_of(value), shape_of(value)) for value in operands]
    if any((None in shape) != (at < rows) or None in shape[1:] for at, (_, shape) in enumerate(given)):
        return f"expects {rows} operands of rows and then others, got {[shape for _, shape in given]}"
    taken = [(dtype_of(value), shape_of(value)) for value in block.arguments]
    states = taken[len(given) :]
    if taken[: len(given)] != given or not states:
        return f"has a body of {taken}, expected {given} and at least one state"
    if any(not shape or shape[0] is not None or None in shape[1:] for _, shape in states):
        return f"has states {[shape for _, shape in states]}, expected [rows, ...]"
    *inside, last = (view.operation for view in block.operations)
    others = {operation.name for operation in inside} - {"ts.aten", "ts.reshape"}
    if others:
        return f"has a body with {', '.join(sorted(others))}, expected ts.aten and ts.reshape"
    if last.name != "ts.step":
        return f"has a body that ends in {last.name}, expected ts.step"
    expected = [(dtype_of(operation.results[0]), shape_of(operation.results[0])), *states]
    made = [(dtype_of(value), shape_of(value)) for value in last.operands]
    return None if made == expected else f"has a body that gives {made}, expected {expected}"


def run_step(recurrence: ir.Operation, arguments: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The body once: the result, then the new states."""
    block = step_block(recurrence)
    values: dict[ir.Value, Tensor] = dict(zip(block.arguments, arguments, strict=True))
    for view in block.operations:
        operation = view.operation
        operands = [values[value] for value in operation.operands]
        if operation.name == "ts.step":
            return operands
        if operation.name == "ts.reshape":
            made = operands[0].reshape(-1, *(size or 0 for size in shape_of(operation.results[0])[1:]))
        else:
            made = run_aten(operation, operands, dtype)
        values[operation.results[0]] = made
    raise AssertionError("the verifier lets no body without ts.step pass")


def recur(
    recurrence: ir.Operation,
    operands: Sequence[Tensor],
    sequences: Sequence[tuple[int, int, int]],
    positions: Tensor,
    kept: States,
    layer: int,
    dtype: torch.dtype,
) -> Tensor:
    """The result rows; `kept` is read, and holds the new states afterwards. `sequences` are (key, first row, end)."""
    rows = int_attribute(recurrence, "rows")
    out: list[Tensor] = []
    for key, start, stop in sequences:
        for row in range(start, stop):
            if positions[row] == 0:
                kept[layer, key] = [_zeros(value, dtype) for value in state_arguments(recurrence)]
            one = [value[row : row + 1] for value in operands[:rows]]
            made, *states = run_step(recurrence, [*one, *operands[rows:], *(state[None] for state in kept[layer, key])], dtype)
            kept[layer, key] = [state[0] for state in states]
            out.append(made)
    return torch.cat(out)


def _zeros(argument: ir.Value, dtype: torch.dtype) -> Tensor:
    floating = dtype_of(argument) in {"f64", "f32", "bf16", "f16"}
    return torch.zeros([size or 0 for size in shape_of(argument)[1:]], dtype=dtype if floating else torch.int64)
