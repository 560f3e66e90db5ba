"""ATen functions that a plan may call where no function of this package does what a model needs: the list of
`plans/aten_functions.py` and nothing else.

A call's `arguments` is JSON with the operation's `args` and `kwargs`, and `result`, the number of the one tensor that is meant
where it gives several. `{"operand": n}` stands for input n, `{"symbol": "tokens"}` for the number of rows, `{"dtype": "f32"}` for
a type. `layouts`, such as "bt.,-->b.t.", has a letter for each dimension of an input or the output in ATen: `b` the batch of
one, `t` rows, `.` any other; or `-` for one without rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch

from ...plans.aten_functions import ATEN_FUNCTIONS
from ..device_arrays import TORCH_TYPES
from .base import Launch, Operands

MAX_ARGUMENTS = 1 << 16
MAX_ITEMS = 64

_OF_LOOSE_ROWS: dict[str, str] = dict.fromkeys(("aten.view.default", "aten._unsafe_view.default"), "aten.reshape.default")
"""What runs in place of functions that ask for dense tensors: rows of a buffer may stand in another order in ATen."""

_MODES = ("none", "tanh", "trunc", "floor", "valid", "same", "sum", "prod", "amax", "amin", "mean")
"""Texts that ATen functions of the list take."""


def aten_function(name: str) -> Callable[[Operands], Launch] | None:
    """The function that runs the ATen operation of that name in plans, None if the list has none."""
    target = ATEN_FUNCTIONS.get(name)
    if target is None:
        return None
    _, operation, overload = _OF_LOOSE_ROWS.get(target, target).split(".")
    function = getattr(getattr(torch.ops.aten, operation), overload)
    return lambda operands: _prepare(operands, function)


def _prepare(operands: Operands, function: Any) -> Launch:
    operands.take(len(operands.inputs), 1)
    *layouts, layout = layouts_of(operands)
    out = arrange(operands, operands.outputs[0], layout)
    inputs = [arrange(operands, tensor, how) for tensor, how in zip(operands.inputs, layouts, strict=True)]
    arguments, keywords, result = arguments_of(operands, inputs, layouts)
    _check(operands, function, (arguments, keywords, result), out)
    if out.device.type != "cpu" and takes_device(function):
        keywords["device"] = out.device

    def run() -> None:
        made = function(*arguments, **keywords)
        out.copy_(made if result is None else made[result])

    return run


def layouts_of(operands: Operands) -> list[str]:
    given = operands.attributes.get("layouts")
    left, arrow, right = given.partition("->") if isinstance(given, str) else ("", "", "")
    layouts = [part.strip() for part in left.split(",")] if left.strip() else []
    if not arrow or len(layouts) != len(operands.inputs):
        operands.refuse("a layout for each input, and one for the output", repr(given))
    return [*layouts, right.strip()]


def arrange(operands: Operands, tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """A view of a tensor of rows as it stands in ATen."""
    if layout == "-":
        return tensor
    letters = layout.removeprefix("b")
    if letters.count("t") != 1 or letters.strip("t.") or len(letters) != tensor.ndim:
        operands.refuse(f"a layout for {tensor.ndim} dimensions, one of them tokens", repr(layout))
    moved = tensor.movedim(0, letters.index("t"))
    return moved.unsqueeze(0) if layout != letters else moved


def arguments_of(
    operands: Operands, inputs: list[torch.Tensor], layouts: list[str]
) -> tuple[list[Any], dict[str, Any], int | None]:
    text = operands.attributes.get("arguments")
    if not isinstance(text, str) or len(text) > MAX_ARGUMENTS:
        operands.refuse(f"at most {MAX_ARGUMENTS} characters of JSON in attribute arguments", f"{str(text)[:80]!r}")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        operands.refuse("JSON in attribute arguments", f"{text[:80]!r}")
    sound = isinstance(found, dict) and found.keys() <= {"args", "kwargs", "result"}
    if not sound or not isinstance(found.get("args"), list) or not isinstance(found.get("kwargs"), dict):
        operands.refuse("args and kwargs in attribute arguments", f"{text[:80]!r}")
    result = found.get("result")
    if result is not None and (not isinstance(result, int) or isinstance(result, bool) or not 0 <= result < MAX_ITEMS):
        operands.refuse("the number of a result", repr(result))
    rows = next((len(tensor) for tensor, how in zip(operands.inputs, layouts, strict=True) if how != "-"), None)
    arguments = [_argument(operands, item, inputs, rows, 2) for item in found["args"]]
    keywords = {name: _argument(operands, item, inputs, rows, 2) for name, item in found["kwargs"].items()}
    if keywords.keys() & {"out", "device", "layout", "pin_memory", "memory_format", "generator"}:
        operands.refuse("no keyword that says where a result lies", str(sorted(keywords)))
    return arguments, keywords, result


def _argument(operands: Operands, item: Any, inputs: list[torch.Tensor], rows: int | None, depth: int) -> Any:
    if item is None or isinstance(item, bool | int | float):
        return item
    if isinstance(item, str) and item in _MODES:
        return item
    if isinstance(item, list) and len(item) <= MAX_ITEMS and depth:
        return [_argument(operands, part, inputs, rows, depth - 1) for part in item]
    if isinstance(item, dict) and len(item) == 1:
        ((kind, value),) = item.items()
        if kind == "operand" and isinstance(value, int) and 0 <= value < len(inputs):
            return inputs[value]
        if kind == "dtype" and isinstance(value, str) and value in TORCH_TYPES:
            return TORCH_TYPES[value]
        if kind == "symbol" and value == "tokens" and rows is not None:
            return rows
    operands.refuse("numbers, operands, types and the number of tokens as arguments", f"{str(item)[:80]!r}")


Arguments = tuple[list[Any], dict[str, Any], int | None]


def _check(operands: Operands, function: Any, call: Arguments, out: torch.Tensor) -> None:
    """Refuse a call that does not give exactly the output: found out without memory, so that no call can ask for more of it.

    Made once for each set of shapes: layers are alike.
    """
    shapes = tuple((tuple(tensor.shape), tensor.stride(), tensor.dtype) for tensor in (*operands.inputs, out))
    key = ("aten", operands.function, str(operands.attributes), shapes)
    problem = operands.context.shared(key, _Checked, lambda: _Checked(problem_of(function, call, out))).problem
    if problem:
        operands.refuse(f"a call that gives {out.dtype} {list(out.shape)}", problem)


class _Checked:
    def __init__(self, problem: str) -> None:
        self.problem = problem


def takes_device(function: Any) -> bool:
    """Whether the operation makes a tensor where it is told to."""
    return any(argument.name == "device" for argument in function._schema.arguments)


def problem_of(function: Any, call: Arguments, out: torch.Tensor) -> str:
    arguments, keywords, result = call
    on_meta = _on_meta(arguments), _on_meta(keywords)
    if takes_device(function):
        on_meta[1]["device"] = "meta"
    try:
        made = function(*on_meta[0], **on_meta[1])
        made = made if result is None else made[result]
    except Exception as error:  # whatever torch raises on arguments that it cannot take
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
    if not isinstance(made, torch.Tensor):
        return "several tensors"
    if made.shape != out.shape or made.dtype != out.dtype:
        return f"{made.dtype} {list(made.shape)}"
    return ""


def _on_meta(item: Any) -> Any:
    if isinstance(item, torch.Tensor):
        return torch.empty_strided(item.shape, item.stride(), dtype=item.dtype, device="meta")
    if isinstance(item, list):
        return [_on_meta(part) for part in item]
    if isinstance(item, dict):
        return {name: _on_meta(part) for name, part in item.items()}
    return item
