"""partition: mixtures whose experts may be cut whole get the numbers of the experts they have."""

from __future__ import annotations

from ..ir import module as modules
from ..ir.dialect import numbers_weight
from ..ir.mixture import numbers_of
from ..ir.mlir import ir
from ..ir.types import shape_of


def number_experts(module: ir.Module) -> ir.Module:
    """Give every mixture of experts their numbers, equal ones the same weight; in place."""
    block = modules.step_block(module)
    made: dict[int, ir.Value] = {}
    for operation in list(modules.walk(block)):
        if operation.name != "ts.moe_experts" or numbers_of(operation) is not None:
            continue
        experts = shape_of(operation.operands[4])[0] or 0
        if experts not in made:
            with ir.InsertionPoint.at_block_begin(block):
                made[experts] = numbers_weight(experts, f"expert_numbers.{experts}")
        _number(operation, made[experts], experts)
    return module


def _number(operation: ir.Operation, numbers: ir.Value, experts: int) -> None:
    operands = [*operation.operands, numbers]
    attributes = {name: operation.attributes[name] for name in operation.attributes}
    sizes = list(ir.DenseI32ArrayAttr(attributes["operandSegmentSizes"]))
    attributes["operandSegmentSizes"] = ir.DenseI32ArrayAttr.get([*sizes[:-1], 1])
    attributes["experts"] = modules.integer(experts)
    with ir.InsertionPoint(operation):
        kinds = [result.type for result in operation.results]
        other = ir.Operation.create(operation.name, results=kinds, operands=operands, attributes=attributes)
    operation.results[0].replace_all_uses_with(other.results[0])
    operation.erase()
