"""Gate and up with the activation that reads them: where they are one kernel, which layers go together, and its numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenspeed.ir import module as modules
from tokenspeed.ir.mlir import ir
from tokenspeed.targets.registry import ACCELERATORS
from tokenspeed.targets.triton import gated_linear
from tokenspeed.targets.triton.build import build
from tokenspeed.targets.triton.gated_linear import gated_activation_or_both, linear_or_nothing
from tokenspeed.targets.triton.kernel import DeviceOperation
from tokenspeed.targets.triton.measured_tiles import LinearTiles, Way

from ...ir.modules import step
from .compared import SETTING
from .interpreter import Interpreter, chosen_launch

HOPPER = replace(SETTING, accelerator=ACCELERATORS["h200"], max_rows=2048)
BOUNDS = (128, 2048)
"""The table has tiles for the first that no kernel does both with."""


def _lines(width: int, inner: int, dtype: str, swapped: bool = False, read_again: bool = False) -> list[str]:
    x, weight, both = f"tensor<?x{inner}x{dtype}>", f"tensor<{2 * width}x{inner}x{dtype}>", f"tensor<?x{2 * width}x{dtype}>"
    half = f"tensor<?x{width}x{dtype}>"
    starts = (width, 0) if swapped else (0, width)
    lines = [
        f'%x = "ts.input"() {{sym = "x"}} : () -> {x}',
        f'%w = "ts.input"() {{sym = "w"}} : () -> {weight}',
        f'%l = "ts.linear"(%x, %w) {{operandSegmentSizes = array<i32: 1, 1, 0>}} : ({x}, {weight}) -> {both}',
        f'%g = "ts.slice"(%l) {{start = {starts[0]} : i64}} : ({both}) -> {half}',
        f'%u = "ts.slice"(%l) {{start = {starts[1]} : i64}} : ({both}) -> {half}',
        f'%r = "ts.gated_activation"(%g, %u) {{activation = "silu"}} : ({half}, {half}) -> {half}',
    ]
    return [*lines, *([f'%s = "ts.add"(%g, %r) : ({half}, {half}) -> {half}'] if read_again else []), "return"]


@pytest.fixture
def context() -> Iterator[None]:
    with modules.context():
        yield


def _operations(lines: list[str]) -> tuple[ir.Operation, ir.Operation, ir.Module]:
    """The layer, the activation, and what keeps both."""
    module = modules.parse(step(lines))
    found = {view.operation.name: view.operation for view in modules.step_block(module).operations}
    return found["ts.linear"], found["ts.gated_activation"], module


def _run(operation: DeviceOperation) -> list[list[bool]]:
    """For each step, whether it runs in the buckets of BOUNDS."""
    return [[step.function.variants([most])[0][1] is not None for most in BOUNDS] for step in operation.steps]


def test_one_kernel_where_there_is_one_for_both(context: None) -> None:
    layer, gate, _module = _operations(_lines(14336, 4096, "bf16"))
    assert _run(linear_or_nothing(layer, HOPPER)) == [[True, False]]
    both = gated_activation_or_both(gate, HOPPER)
    assert _run(both) == [[True, False], [False, True]]
    assert both.steps[1].inputs == (3, 4) and both.more == tuple(layer.operands)


@pytest.mark.parametrize("lines", [_lines(14336, 4096, "bf16", swapped=True), _lines(14336, 4096, "bf16", read_again=True)])
def test_a_layer_that_is_read_otherwise_stays_by_itself(context: None, lines: list[str]) -> None:
    layer, gate, _module = _operations(lines)
    assert _run(linear_or_nothing(layer, HOPPER)) == [[True, True]]
    assert _run(gated_activation_or_both(gate, HOPPER)) == [[True, True]]


@pytest.mark.parametrize("rows", [1, 2, 8, 64, 2048])
def test_tiles_of_the_table_build_for_both(context: None, rows: int) -> None:
    _, gate, _module = _operations(_lines(14336, 4096, "bf16"))
    launch = gated_activation_or_both(gate, HOPPER).steps[-1].function.variants([rows])[0][1]
    assert launch is not None
    kernel, _ = build(launch, HOPPER.accelerator)
    assert kernel.receipt.spills == 0 and launch.dependent_launch == (rows <= 64)


@pytest.mark.parametrize("way", ["one_row", "many_rows_by_descriptors"])
def test_numbers_of_both_together(context: None, interpreter: Interpreter, monkeypatch: pytest.MonkeyPatch, way: Way) -> None:
    tiles = LinearTiles(way=way, rows=16, columns=32, inner=16, warps=4, stages=2)
    monkeypatch.setattr(gated_linear, "tiles_for", lambda *_: tiles)
    width, inner, rows = 48, 32, 21
    _, gate, _module = _operations(_lines(width, inner, "f32"))
    function = gated_activation_or_both(gate, SETTING).steps[-1].function
    symbols = {"rows": rows, "logit_rows": 1}
    launch = chosen_launch(function, symbols)
    assert launch is not None
    generator = np.random.default_rng(3)
    x, weight = (generator.standard_normal(shape).astype(np.float32) for shape in ((rows, inner), (2 * width, inner)))
    out = np.full((rows, width), 77, np.float32)
    if "UNITS" in launch.constants:
        launch = replace(launch, grid=(3, 1, 1), constants={**launch.constants, "UNITS": 3})
    interpreter.launch(launch, [x, weight, out], symbols)
    first, second = (torch.from_numpy(x) @ torch.from_numpy(weight).T).split(width, 1)
    np.testing.assert_allclose(out, (torch.nn.functional.silu(first) * second).numpy(), rtol=1e-5, atol=1e-5)
