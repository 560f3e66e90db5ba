"""An RMS norm and the layer that reads it first: where they are one kernel, and its numbers, interpreted."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from tokenspeed.ir import module as modules
from tokenspeed.ir.mlir import ir
from tokenspeed.targets.triton.kernel import DeviceOperation
from tokenspeed.targets.triton.normed_linear import add_rms_norm_or_nothing, linear_after_norm, rms_norm_or_nothing

from ...ir.modules import step
from .compared import SETTING
from .interpreter import Interpreter

COLUMNS, INNER = 20, 40
X, WEIGHT, OUT = f"tensor<?x{INNER}xf32>", f"tensor<{COLUMNS}x{INNER}xf32>", f"tensor<?x{COLUMNS}xf32>"
STYLE = "{eps = 1.0e-6 : f64, cast_before_weight = true, one_plus_weight = true}"
GIVEN = [
    f'%a{at} = "ts.input"() {{sym = "a{at}"}} : () -> {kind}' for at, kind in enumerate((X, X, f"tensor<{INNER}xf32>", WEIGHT))
]
LAYER = f'%l = "ts.linear"(%n, %a3) {{operandSegmentSizes = array<i32: 1, 1, 0>}} : ({X}, {WEIGHT}) -> {OUT}'
ALONE = f'%n = "ts.rms_norm"(%a0, %a2) {STYLE} : ({X}, tensor<{INNER}xf32>) -> {X}'
ADDED = f'%t, %n = "ts.add_rms_norm"(%a0, %a1, %a2) {STYLE} : ({X}, {X}, tensor<{INNER}xf32>) -> ({X}, {X})'
AGAIN = f'%m = "ts.mul"(%n, %a0) : ({X}, {X}) -> {X}'


@pytest.fixture
def context() -> Iterator[None]:
    with modules.context():
        yield


def _operations(lines: list[str]) -> tuple[dict[str, ir.Operation], ir.Module]:
    module = modules.parse(step([*GIVEN, *lines, "return"]))
    return {view.operation.name: view.operation for view in modules.step_block(module).operations}, module


def _runs(operation: DeviceOperation, rows: int) -> list[str]:
    launches = [step.function.variants([rows])[0][1] for step in operation.steps]
    return [launch.source for launch in launches if launch is not None]


def test_one_row_is_one_kernel(context: None) -> None:
    found, _module = _operations([ALONE, LAYER])
    for rows, norms, layers in ((1, [], ["normed_linear.one_row"]), (2, ["norms.rms_norm"], ["linear.one_row"])):
        assert _runs(rms_norm_or_nothing(found["ts.rms_norm"], SETTING), rows) == norms
        assert _runs(linear_after_norm(found["ts.linear"], SETTING), rows) == layers


def test_a_norm_that_is_read_before_stays_by_itself(context: None) -> None:
    found, _module = _operations([ALONE, AGAIN, LAYER])
    assert _runs(rms_norm_or_nothing(found["ts.rms_norm"], SETTING), 1) == ["norms.rms_norm"]
    assert _runs(linear_after_norm(found["ts.linear"], SETTING), 1) == ["linear.one_row"]


def test_numbers(context: None, interpreter: Interpreter) -> None:
    """With a residual, and a norm that is read again."""
    found, _module = _operations([ADDED, LAYER, AGAIN])
    assert _runs(add_rms_norm_or_nothing(found["ts.add_rms_norm"], SETTING), 1) == []
    generator = np.random.default_rng(6)
    x, residual = (generator.standard_normal((1, INNER)).astype(np.float32) for _ in range(2))
    factor, weight = (generator.standard_normal(shape).astype(np.float32) for shape in ((INNER,), (COLUMNS, INNER)))
    out, total, normed = (np.full((1, size), 77, np.float32) for size in (COLUMNS, INNER, INNER))
    operands = [normed, weight, out, x, residual, factor, total, normed]
    interpreter.run(linear_after_norm(found["ts.linear"], SETTING), operands, {"rows": 1, "logit_rows": 1})
    summed = x + residual
    expected = summed / np.sqrt((summed * summed).mean() + 1e-6) * (1 + factor)
    np.testing.assert_allclose(total, summed, rtol=1e-6)
    np.testing.assert_allclose(normed, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(out, expected @ weight.T, rtol=1e-5, atol=1e-4)
