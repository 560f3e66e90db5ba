"""Weights in blocks: packing is ggml's rounding, and layers and tables give what the decoded weights give, interpreted."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray
from tokenspeed.ir import module as modules
from tokenspeed.plans.weight_layout import BLOCKS, chunk_of, planes, stored_bytes
from tokenspeed.targets.triton import block_linear, block_tiles
from tokenspeed.targets.triton.block_rows import block_embedding
from tokenspeed.targets.triton.kernel import DeviceOperation
from tokenspeed.targets.triton.mixture import moe_experts
from tokenspeed.targets.triton.packing import BOUNDS, packing

from ...ir.modules import step
from .compared import SETTING
from .interpreter import Interpreter

Array = NDArray[Any]
FORMATS = ("q8_0", "q4_0", "q4_1", "e4m3_128")
SHAPES = ((5, 96), (40, 128))
CASES = [(stored, shape) for stored in FORMATS for shape in SHAPES if shape[1] % BLOCKS[stored][0] == 0]


def values(shape: tuple[int, int]) -> Array:
    made = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    made[0, :32] = 0.0
    made[1, 1], made[1, 5] = 4.0, -4.0  # of two that are as large, the first counts
    return made


def packed(interpreter: Interpreter, data: Array, source: str, stored: str, shape: tuple[int, int]) -> Array:
    """The planes of a weight, as bytes, by the function that loads it."""
    (function,) = packing([(source, stored, chunk_of(shape[1], stored))])
    launch = function.variants(BOUNDS)[0][1]
    assert launch is not None
    blocks = prod(shape) // BLOCKS[stored][0]
    types = {"u8": np.uint8, "f16": np.float16, "f32": np.float32}
    outputs = [
        np.zeros(blocks * width // np.dtype(types[kind]).itemsize, types[kind]) for kind, width, _ in planes(shape, stored)
    ]
    interpreter.launch(launch, [data, *outputs], {"rows": blocks, "logit_rows": 0})
    whole = np.concatenate([item.view(np.uint8) for item in outputs])
    assert whole.nbytes == stored_bytes(shape, stored, "planes")
    return whole


def quantized(data: Array, stored: str) -> tuple[Array, Array]:
    """ggml's blocks, or those of 8-bit floats, and what they stand for."""
    if stored == "e4m3_128":
        return float8_blocks(data)
    kind = GGMLQuantizationType[stored.upper()]
    blocks = quantize(data, kind)
    return blocks, dequantize(blocks, kind)


def float8_blocks(data: Array) -> tuple[Array, Array]:
    """The largest value of a block becomes 448."""
    of_blocks = data.reshape(-1, 128)
    scales = np.abs(of_blocks).max(1, keepdims=True) / np.float32(448)
    codes = torch.from_numpy(of_blocks / np.where(scales == 0, 1, scales)).to(torch.float8_e4m3fn)
    blocks = np.concatenate([scales.view(np.uint8), codes.view(torch.uint8).numpy()], 1)
    return blocks.reshape(*data.shape[:-1], -1), (codes.float().numpy() * scales).reshape(data.shape)


def operation_of(line: str, stored: str, shape: tuple[int, int], template: Any) -> DeviceOperation:
    rows, columns = shape
    types = {"x": f"tensor<?x{columns}xf32>", "w": f"tensor<{rows}x{columns}xf32>", "r": f"tensor<?x{rows}xf32>"}
    body = [
        f'%x = "ts.input"() {{sym = "x"}} : () -> {types["x"]}',
        '%t = "ts.input"() {sym = "t"} : () -> tensor<?xi32>',
        f'%b = "ts.input"() {{sym = "b"}} : () -> tensor<{rows}xf32>',
        f'%w = "ts.weight"() {{sym = "w", parameters = ["w"], stored = "{stored}"}} : () -> {types["w"]}',
        line.format(**types, bias=f"tensor<{rows}xf32>"),
        "return",
    ]
    with modules.context():
        module = modules.parse(step(body))
        operation = [view.operation for view in modules.step_block(module).operations][-2]
        return template(operation, SETTING)


LINEAR = '%r = "ts.linear"(%x, %w, %b) {{operandSegmentSizes = array<i32: 1, 1, 1>}} : ({x}, {w}, {bias}) -> {r}'
EMBEDDING = '%r = "ts.embedding"(%t, %w) : (tensor<?xi32>, {w}) -> {x}'


@pytest.mark.parametrize(("stored", "shape"), CASES)
def test_packing_rounds_as_ggml_does(interpreter: Interpreter, stored: str, shape: tuple[int, int]) -> None:
    data = values(shape)
    blocks, _ = quantized(data, stored)
    from_values = packed(interpreter, data, "f32", stored, shape)
    assert np.array_equal(from_values, packed(interpreter, blocks.reshape(-1), stored, stored, shape))


def test_blocks_of_256_become_blocks_of_32(interpreter: Interpreter) -> None:
    """Codes stay; scale and minimum are rounded to float16."""
    shape = (3, 512)
    generator = np.random.default_rng(5)
    blocks = generator.integers(0, 256, (6, 144), np.uint8)
    blocks[:, :4] = generator.uniform(0.01, 0.02, (6, 2)).astype(np.float16).view(np.uint8)
    planes_of = packed(interpreter, blocks.reshape(-1), "q4_k", "q4_1", shape)
    layer = operation_of(EMBEDDING, "q4_1", shape, block_embedding)
    rows = np.full(shape, np.nan, np.float32)
    interpreter.run(layer, [np.arange(3, dtype=np.int32), planes_of, rows], {"rows": 3, "logit_rows": 3})
    expected = dequantize(blocks.reshape(3, -1), GGMLQuantizationType.Q4_K)
    np.testing.assert_allclose(rows, expected, atol=2e-3 * np.abs(expected).max())


@pytest.mark.parametrize(("stored", "shape"), CASES)
def test_rows_of_a_table(interpreter: Interpreter, stored: str, shape: tuple[int, int]) -> None:
    data = values(shape)
    _, expected = quantized(data, stored)
    tokens = np.array([0, 4, 1], np.int32)
    rows = np.full((3, shape[1]), np.nan, np.float32)
    table = packed(interpreter, data, "f32", stored, shape)
    interpreter.run(operation_of(EMBEDDING, stored, shape, block_embedding), [tokens, table, rows], {"rows": 3, "logit_rows": 3})
    np.testing.assert_allclose(rows, expected[tokens], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("stored", "inner", "rows"), [("q8_0", 32, 3), ("q4_0", 64, 40), ("q4_0", 24, 3), ("e4m3_128", 128, 3)])
def test_experts(interpreter: Interpreter, stored: str, inner: int, rows: int) -> None:
    """Both weights in blocks, or the first alone, where rows of the other are not made of whole ones."""
    experts, hidden, top = 3, 128 if stored == "e4m3_128" else 64, 2
    generator = np.random.default_rng(4)
    gate_up, down = (
        generator.standard_normal(shape).astype(np.float32)
        for shape in ((experts * 2 * inner, hidden), (experts * hidden, inner))
    )
    in_blocks = f', stored = "{stored}"'
    types = f"tensor<?x{hidden}xf32>", f"tensor<?x{top}xi32>", f"tensor<?x{top}xf32>"
    weights = f"tensor<{experts}x{2 * inner}x{hidden}xf32>", f"tensor<{experts}x{hidden}x{inner}xf32>"
    body = [f'%a{at} = "ts.input"() {{sym = "a{at}"}} : () -> {kind}' for at, kind in enumerate(types)]
    for at, kept in ((3, in_blocks), (4, in_blocks if inner % 32 == 0 else "")):
        body.append(f'%a{at} = "ts.weight"() {{sym = "w{at}", parameters = ["w{at}"]{kept}}} : () -> {weights[at - 3]}')
    more = 'activation = "silu", alpha = 1.0 : f64, limit = 0.0 : f64, operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 0, 0>'
    body.append(f'%r = "ts.moe_experts"(%a0, %a1, %a2, %a3, %a4) {{{more}}} : ({", ".join((*types, *weights))}) -> {types[0]}')
    with modules.context():
        module = modules.parse(step([*body, "return"]))
        template = moe_experts([view.operation for view in modules.step_block(module).operations][-2], SETTING)
    x = generator.standard_normal((rows, hidden)).astype(np.float32)
    indices = np.argsort(generator.random((rows, experts)), axis=1)[:, :top].astype(np.int32)
    shares = generator.random((rows, top)).astype(np.float32)
    out = np.full((rows, hidden), np.nan, np.float32)
    planes_of = packed(interpreter, gate_up, "f32", stored, gate_up.shape)
    others = packed(interpreter, down, "f32", stored, down.shape) if inner % 32 == 0 else down
    interpreter.run(template, [x, indices, shares, planes_of, others, out], {"rows": rows, "logit_rows": rows})
    first = quantized(gate_up, stored)[1].reshape(experts, 2 * inner, hidden)
    second = (quantized(down, stored)[1] if inner % 32 == 0 else down).reshape(experts, hidden, inner)
    expected = np.zeros_like(out)
    for row, place in np.ndindex(rows, top):
        both = first[indices[row, place]] @ x[row]
        gate, up = both[:inner], both[inner:]
        expected[row] += shares[row, place] * (second[indices[row, place]] @ (gate / (1 + np.exp(-gate)) * up))
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4 + 1e-6 * float(np.abs(expected).max()))


@pytest.mark.parametrize(("rows", "shares"), [(3, 1), (3, 3), (9, 1)])
@pytest.mark.parametrize("stored", FORMATS)
def test_layers(interpreter: Interpreter, monkeypatch: pytest.MonkeyPatch, stored: str, rows: int, shares: int) -> None:
    """Few rows, over the whole of K and in shares of it; more rows than are streamed."""
    shape = (40, 384 if stored == "e4m3_128" else 320)
    monkeypatch.setattr(block_linear, "MOST_STREAMED", 8)
    tiles = block_tiles.Tiles(16, 16, 128, 4, 2, shares)
    monkeypatch.setattr(block_linear, "tiles_for", lambda *_: tiles)
    data, generator = values(shape), np.random.default_rng(1)
    _, weight = quantized(data, stored)
    x = generator.standard_normal((rows, shape[1])).astype(np.float32)
    bias = generator.standard_normal(shape[0]).astype(np.float32)
    out = np.full((rows, shape[0]), np.nan, np.float32)
    layer = operation_of(LINEAR, stored, shape, block_linear.block_linear)
    interpreter.run(layer, [x, packed(interpreter, data, "f32", stored, shape), bias, out], {"rows": rows, "logit_rows": rows})
    np.testing.assert_allclose(out, x @ weight.T + bias, rtol=2e-5, atol=2e-5)
