"""Every operation has its row in each table that passes read: nothing is forgotten when an operation is added."""

from __future__ import annotations

import re

from tokenspeed.ir import reference, shapes, sharding
from tokenspeed.targets import cost
from tokenspeed.targets.registry import TARGETS

from .samples import SOUND
from .test_dialect import operation_names

CONTROL = {"ts.repeat", "ts.step", "ts.yield"}
LEAVES = {"ts.input", "ts.weight", "ts.constant"}
VIEWS = {"ts.reshape", "ts.slice", "ts.take_rows", "ts.join_rows"}
CHANGES, BORDERS = sharding.CHANGES, sharding.BORDERS
"""Inserted by the partitioner for more than one rank: bytes over links."""
MOVES_ONLY = {"ts.embedding", "ts.gather_rows"}
"""Bytes, no floating-point operations."""
READ_WEIGHTS = {"ts.linear", "ts.embedding", "ts.moe_experts"}
"""Run by the interpreter through its weight provider."""

OF_REGIONS = {"ts.recurrence"}
OWN_REFERENCE = {"ts.aten", "ts.recurrence"}
OWN_SHARDING = {"ts.aten", "ts.recurrence", "ts.reshape"}

OPERATIONS = operation_names() - CONTROL


def test_shape_rules() -> None:
    assert set(shapes.RULES) | OF_REGIONS == OPERATIONS
    assert set(shapes.ATTRIBUTE_RULES) <= OPERATIONS


def test_sharding_rules() -> None:
    assert set(sharding._RULES) | OWN_SHARDING == OPERATIONS - LEAVES - BORDERS
    assert sharding.SUM_COMMUTES <= OPERATIONS


def test_reference_implementations() -> None:
    assert {*reference.REFERENCE, *reference._STATEFUL, *READ_WEIGHTS, *OWN_REFERENCE, *CHANGES} == OPERATIONS - LEAVES - BORDERS
    assert not set(reference.REFERENCE) & set(reference._STATEFUL)


def test_cost_rules() -> None:
    assert {*cost._FLOPS, *cost.FREE, *MOVES_ONLY, *CHANGES, *BORDERS} == OPERATIONS
    assert cost.FREE == LEAVES | VIEWS


def test_every_target_has_a_kernel_for_every_operation() -> None:
    for machine in TARGETS.values():
        assert {kernel.operation for kernel in machine.kernels} == OPERATIONS - cost.FREE, machine.name


def test_lowering_knows_the_attributes_of_every_operation_that_has_any() -> None:
    from tokenspeed.passes import lower

    structural = {"sym", "parameters", "label", "layer", "kv_heads", "start", "axis", "half", "operandSegmentSizes"}
    attributed = {sample.name for sample in SOUND if set(re.findall(r"(\w+) =", sample.attributes)) - structural}
    assert set(lower._ATTRIBUTES) == attributed | OF_REGIONS | CHANGES | BORDERS
    assert set(lower._CALLS) == {*reference._STATEFUL, *OF_REGIONS}
