"""The meaning of `ts.aten` on flat rows: operands as they stood in ATen, the operation itself, its result back in rows."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from .attributes import text_attribute
from .mlir import ir

_TYPES = {"i64": torch.int64, "i32": torch.int32, "u8": torch.uint8, "i1": torch.bool}
_OF_LOOSE_ROWS: dict[str, str] = dict.fromkeys(("aten.view.default", "aten._unsafe_view.default"), "aten.reshape.default")
"""What stands for operations that ATen has dense tensors for: elements of a value of rows may lie in another order."""
_FLOATING = {"f64", "f32", "bf16", "f16"}


def run_aten(operation: ir.Operation, operands: list[Tensor], dtype: torch.dtype) -> Tensor:
    """The operation's result; floating-point types in its arguments become `dtype`, the type the reference computes in."""
    target = text_attribute(operation, "target")
    _, name, overload = _OF_LOOSE_ROWS.get(target, target).split(".")
    left, _, right = text_attribute(operation, "layouts").partition("->")
    layouts = [part.strip() for part in left.split(",")]
    rows = next((len(value) for value, layout in zip(operands, layouts, strict=True) if layout != "-"), 0)
    placed = [
        arranged(value.to(dtype) if value.is_floating_point() else value, layout)
        for value, layout in zip(operands, layouts, strict=True)
    ]
    found = json.loads(text_attribute(operation, "arguments"))
    arguments, keywords = _filled(found["args"], placed, rows, dtype), _filled(found["kwargs"], placed, rows, dtype)
    made = getattr(getattr(torch.ops.aten, name), overload)(*arguments, **keywords)
    made = made if found.get("result") is None else made[found["result"]]
    return in_rows(made, right.strip())


def arranged(value: Tensor, layout: str) -> Tensor:
    """[rows, ...] as it stands in ATen."""
    if layout == "-":
        return value
    moved = value.movedim(0, layout.removeprefix("b").index("t"))
    return moved.unsqueeze(0) if layout.startswith("b") else moved


def in_rows(value: Tensor, layout: str) -> Tensor:
    """The inverse of `arranged`."""
    if layout == "-":
        return value
    flat = value.squeeze(0) if layout.startswith("b") else value
    return flat.movedim(layout.removeprefix("b").index("t"), 0)


def _filled(item: Any, operands: list[Tensor], rows: int, dtype: torch.dtype) -> Any:
    if isinstance(item, list):
        return [_filled(part, operands, rows, dtype) for part in item]
    if not isinstance(item, dict):
        return item
    if "operand" in item:
        return operands[item["operand"]]
    if "symbol" in item:
        return rows
    if set(item) == {"dtype"} and isinstance(item["dtype"], str):
        return dtype if item["dtype"] in _FLOATING else _TYPES[item["dtype"]]
    return {name: _filled(part, operands, rows, dtype) for name, part in item.items()}
