"""Experts of few rows, interpreted: which buckets take pairs by themselves, what is added in the same kernel, and the numbers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tokenspeed.ir import module as modules
from tokenspeed.ir.mlir import ir
from tokenspeed.runtime.functions.base import Operands
from tokenspeed.runtime.functions.context import Context
from tokenspeed.runtime.functions.registry import lookup
from tokenspeed.targets.triton.few_experts import add_or_experts, pairs_alone
from tokenspeed.targets.triton.kernel import DeviceOperation
from tokenspeed.targets.triton.mixture import moe_experts

from ...ir.modules import step
from .compared import SETTING
from .interpreter import Interpreter

EXPERTS, HIDDEN, INNER, TOP, ROWS = 48, 12, 10, 3, 2
X, INDICES, FACTORS = f"tensor<?x{HIDDEN}xf32>", f"tensor<?x{TOP}xi32>", f"tensor<?x{TOP}xf32>"
FIRST, SECOND = f"tensor<{EXPERTS}x{2 * INNER}x{HIDDEN}xf32>", f"tensor<{EXPERTS}x{HIDDEN}x{INNER}xf32>"
TYPES = (X, INDICES, FACTORS, FIRST, SECOND, X)


@pytest.fixture
def context() -> Iterator[None]:
    with modules.context():
        yield


def _operations(more: tuple[str, ...] = ()) -> tuple[ir.Operation, ir.Operation, ir.Module]:
    """The experts, the addition, and what keeps both; `more` lines may read what the experts make."""
    segments = "operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 0, 0>"
    text = f'activation = "silu", alpha = 0.0 : f64, limit = 0.0 : f64, experts = {EXPERTS} : i64, {segments}'
    lines = [
        *(f'%a{at} = "ts.input"() {{sym = "a{at}"}} : () -> {kind}' for at, kind in enumerate(TYPES)),
        f'%e = "ts.moe_experts"(%a0, %a1, %a2, %a3, %a4) {{{text}}} : ({", ".join(TYPES[:5])}) -> {X}',
        f'%r = "ts.add"(%a5, %e) : ({X}, {X}) -> {X}',
        *more,
        "return",
    ]
    module = modules.parse(step(lines))
    found = {view.operation.name: view.operation for view in modules.step_block(module).operations}
    return found["ts.moe_experts"], found["ts.add"], module


def _runs(operation: DeviceOperation, rows: int) -> list[str]:
    launches = [step.function.variants([rows])[0][1] for step in operation.steps]
    return [launch.source for launch in launches if launch is not None]


def test_few_rows_are_one_with_what_is_added(context: None) -> None:
    experts, add, _module = _operations()
    assert pairs_alone(experts, ROWS) and not pairs_alone(experts, ROWS + 1)
    assert _runs(moe_experts(experts, SETTING), ROWS) == []
    assert _runs(add_or_experts(add, SETTING), ROWS) == ["few_experts.gate_up", "few_experts.down"]
    assert "mixture.arrange" in _runs(moe_experts(experts, SETTING), ROWS + 1)
    assert _runs(add_or_experts(add, SETTING), ROWS + 1) == ["elementwise.map_two"]


def test_experts_that_are_read_again_are_by_themselves(context: None) -> None:
    experts, add, _module = _operations((f'%s = "ts.mul"(%e, %a5) : ({X}, {X}) -> {X}',))
    assert _runs(moe_experts(experts, SETTING), ROWS) == ["few_experts.gate_up", "few_experts.down"]
    assert _runs(add_or_experts(add, SETTING), ROWS) == ["elementwise.map_two"]


def test_numbers(context: None, interpreter: Interpreter) -> None:
    """A place that names no expert, as rows of padding may, adds nothing."""
    _, add, _module = _operations()
    generator = np.random.default_rng(4)
    x, residual = (generator.standard_normal((ROWS, HIDDEN)).astype(np.float32) for _ in range(2))
    first, second = (
        generator.standard_normal((EXPERTS, *shape)).astype(np.float32) for shape in ((2 * INNER, HIDDEN), (HIDDEN, INNER))
    )
    indices = np.array([[3, 47, 0], [7, EXPERTS, 3]], np.int32)
    factors = generator.random((ROWS, TOP)).astype(np.float32)
    out, unread = (np.full((ROWS, HIDDEN), 77, np.float32) for _ in range(2))
    given = [x, indices, factors, first, second]
    interpreter.run(add_or_experts(add, SETTING), [residual, unread, out, *given], {"rows": ROWS, "logit_rows": ROWS})
    wanted = torch.zeros(ROWS, HIDDEN)
    there, none = indices.copy(), factors.copy()
    there[1, 1], none[1, 1] = 0, 0
    attributes = {"activation": "silu", "alpha": 0.0, "limit": 0.0}
    inputs = [torch.from_numpy(item) for item in (x, there, none, first, second)]
    lookup("moe_experts")(Operands("moe_experts", inputs, [wanted], attributes, Context()))()
    np.testing.assert_allclose(out, wanted.numpy() + residual, rtol=2e-5, atol=2e-5)
