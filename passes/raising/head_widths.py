"""Heads of one width: where values are narrower than keys, or wider, the narrower ones are filled up with zeros.

Zeros in queries and keys add nothing to scores, and zeros in values become columns of the result that are cut off again.
"""

from __future__ import annotations

import json

from ...ir import dialect
from ...ir import module as modules
from ...ir.mlir import ir
from ...ir.types import dtype_of, shape_of, tensor
from .fallback import built_call
from .form import Form


def widened(heads: ir.Value, width: int, label: str) -> ir.Value:
    """[rows, heads, d], d <= width, filled up to [rows, heads, width]."""
    _rows, count, narrow = shape_of(heads)
    if narrow == width:
        return heads
    text = json.dumps({"args": [{"operand": 0}, [0, width - (narrow or 0)], 0.0], "kwargs": {}})
    kind, operands = tensor(dtype_of(heads), [None, count, width]), [(heads, Form.HEADS_FIRST)]
    reason = "keys and values differ in width"
    return built_call(kind, operands, Form.HEADS_FIRST, "aten.constant_pad_nd.default", text, reason, label)


def narrowed(heads: ir.Value, width: int) -> ir.Value:
    """The first `width` columns of each head."""
    if shape_of(heads)[2] == width:
        return heads
    return dialect.Slice(tensor(dtype_of(heads), [None, shape_of(heads)[1], width]), heads, modules.integer(0)).res
