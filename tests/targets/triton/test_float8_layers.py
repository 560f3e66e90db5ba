"""Layers in products of 8-bit floats, interpreted: few rows lose nothing of x, many are rounded row by row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tokenspeed.ir import module as modules
from tokenspeed.targets.registry import ACCELERATORS
from tokenspeed.targets.triton import float8_linear
from tokenspeed.targets.triton.block_linear import block_linear
from tokenspeed.targets.triton.float8_linear import Float8Layer
from tokenspeed.targets.triton.float8_tiles import FewTiles, ManyTiles, splits
from tokenspeed.targets.triton.kernel import DeviceSetting
from tokenspeed.targets.triton.operand import Layout

from ...ir.modules import step
from .interpreter import Interpreter
from .test_blocks import packed, quantized

COLUMNS, INNER, MOST = 40, 256, 80
STORED: Any = "e4m3_128"


def layer_of(interpreter: Interpreter, rows: int, monkeypatch: pytest.MonkeyPatch, shares: int) -> tuple[np.ndarray, np.ndarray]:
    """What a layer gives for rows with whole and tiny elements that bfloat16 has, and the exact products."""
    monkeypatch.setattr(float8_linear, "few_tiles", lambda *_: FewTiles(16, 16, 4, 2, shares))
    monkeypatch.setattr(float8_linear, "many_tiles", lambda *_: ManyTiles(64, 16, 4, 2))
    accelerator = replace(ACCELERATORS["h200"], instructions=())
    generator = np.random.default_rng(2)
    data = generator.standard_normal((COLUMNS, INNER)).astype(np.float32)
    _, weight = quantized(data, "e4m3_128")
    x = generator.standard_normal((rows, INNER)).astype(np.float32) * generator.choice([1.0, 100.0, 0.01], (rows, INNER))
    x = (x.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
    x[0] = 0.0
    bias, out = generator.standard_normal(COLUMNS).astype(np.float32), np.full((rows, COLUMNS), np.nan, np.float32)
    inputs = (
        Layout("f32", (None, INNER), (INNER, 1)),
        Layout(STORED, (COLUMNS, INNER), (INNER, 1)),
        Layout("f32", (COLUMNS,), (1,)),
    )
    layer = Float8Layer(inputs, Layout("f32", (None, COLUMNS), (COLUMNS, 1)), accelerator, "rows", MOST)
    planes = packed(interpreter, data, "f32", "e4m3_128", data.shape)
    interpreter.run(layer.operation(), [x, planes, bias, out], {"rows": rows, "logit_rows": 0})
    return out, x.astype(np.float64) @ weight.astype(np.float64).T + bias


@pytest.mark.parametrize(("rows", "shares"), [(1, 1), (9, 2)])
def test_few_rows_are_exact(interpreter: Interpreter, monkeypatch: pytest.MonkeyPatch, rows: int, shares: int) -> None:
    out, expected = layer_of(interpreter, rows, monkeypatch, shares)
    # elements of 2^-17 of the largest and less are not
    np.testing.assert_allclose(out, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_many_rows_are_rounded(interpreter: Interpreter, monkeypatch: pytest.MonkeyPatch) -> None:
    out, expected = layer_of(interpreter, MOST, monkeypatch, 1)
    error = np.sqrt(np.square(out - expected).mean() / np.square(expected).mean())
    assert 0.005 < error < 0.04


def test_which_devices_multiply_them() -> None:
    names = {name for name, accelerator in ACCELERATORS.items() if splits(accelerator, "bf16", "e4m3_128")}
    assert names == {"h100", "h200", "b200", "mi355x"}


def test_functions_of_a_layer_have_names_of_their_own() -> None:
    """Templates are told apart by their names."""
    with modules.context():
        body = [
            '%x = "ts.input"() {sym = "x"} : () -> tensor<?x4096xbf16>',
            '%w = "ts.weight"() {sym = "w", parameters = ["w"], stored = "e4m3_128"} : () -> tensor<4096x4096xbf16>',
            '%r = "ts.linear"(%x, %w) {operandSegmentSizes = array<i32: 1, 1, 0>} : '
            "(tensor<?x4096xbf16>, tensor<4096x4096xbf16>) -> tensor<?x4096xbf16>",
        ]
        module = modules.parse(step([*body, "return"]))
        layer = [view.operation for view in modules.step_block(module).operations][-2]
        made = block_linear(layer, DeviceSetting(ACCELERATORS["h200"], 2048, 64, 64, 64, 8))
    names = [item.function.name for item in made.steps]
    assert len(names) == len({*names}) == 7
