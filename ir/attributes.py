"""Reading the attributes of operations."""

from __future__ import annotations

from .mlir import ir


def text_attribute(operation: ir.Operation, name: str) -> str:
    return ir.StringAttr(operation.attributes[name]).value


def int_attribute(operation: ir.Operation, name: str) -> int:
    return ir.IntegerAttr(operation.attributes[name]).value


def float_attribute(operation: ir.Operation, name: str) -> float:
    return ir.FloatAttr(operation.attributes[name]).value


def text_list(operation: ir.Operation, name: str) -> list[str]:
    return [ir.StringAttr(item).value for item in ir.ArrayAttr(operation.attributes[name])]
