"""How a `ts.weight` is stored where that is not in the elements of its type: attributes that the quantize phase sets."""

from __future__ import annotations

from . import module as modules
from .mlir import ir

STORED, KEPT = "stored", "kept"
"""Attributes of ts.weight: the block type it is stored in, and the block type of the checkpoint where its blocks are kept."""


def stored_type(weight: ir.Operation, dtype: str) -> str:
    """The type that a ts.weight is stored in; `dtype` where it is not quantised."""
    return modules.text_attribute(weight, STORED) if STORED in weight.attributes else dtype
