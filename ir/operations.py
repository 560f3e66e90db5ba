"""What every operation of the `ts` dialect is made of: the dialect itself, types of fields, the verifier."""

from typing import TypeAlias

from . import shapes
from .mlir import ext, ir

Operand: TypeAlias = ext.Operand[ir.RankedTensorType]
Result: TypeAlias = ext.Result[ir.RankedTensorType]


class TsDialect(ext.Dialect, name="ts"):
    """LLM-level tensor operations on flat rows."""


@staticmethod
def verify(op: ir.OpView) -> bool:
    """The verifier of every operation: the rule that `shapes.RULES` holds for its name."""
    problem = shapes.check(op.operation)
    if problem:
        op.operation.location.emit_error(f"'{op.operation.name}' {problem}")
    return problem is None
