"""What the kernels compute, interpreted, is what the runtime's functions compute, in float32."""

from __future__ import annotations

import numpy as np
import pytest
from tokenspeed.ir import module as modules
from tokenspeed.targets.triton.rope import norm_unless_turned, rope_kv_write

from ...ir.modules import step
from .compared import ROWS, SETTING, Case, compare
from .interpreter import Interpreter

X, X3 = "tensor<?x12xf32>", "tensor<?x3x10xf32>"
STYLES = [(True, False), (False, True), (True, True)]
TOKENS = np.array([3, 0, 6, 6, 1], np.int32)
MERGED = "tensor<?x84xf32>"
SLICED = (
    '%b0 = "ts.slice"(%a0) {start = 10 : i64} : (tensor<?x84xf32>) -> tensor<?x30xf32>',
    '%b1 = "ts.reshape"(%b0) : (tensor<?x30xf32>) -> tensor<?x3x10xf32>',
    '%b2 = "ts.slice"(%b1) {start = 2 : i64} : (tensor<?x3x10xf32>) -> tensor<?x3x8xf32>',
)


def _norm(cast_first: bool, one_plus: bool) -> tuple[str, dict[str, bool | float]]:
    flags = {"cast_before_weight": cast_first, "one_plus_weight": one_plus}
    text = ", ".join(f"{name} = {str(value).lower()}" for name, value in flags.items())
    return f"{text}, eps = 1.0e-5 : f64", {**flags, "eps": 1e-5}


@pytest.mark.parametrize(("cast_first", "one_plus"), STYLES)
def test_rms_norm_of_strided_heads(interpreter: Interpreter, cast_first: bool, one_plus: bool) -> None:
    text, attributes = _norm(cast_first, one_plus)
    line = f'%r = "ts.rms_norm"(%b2, %a1) {{{text}}} : (tensor<?x3x8xf32>, tensor<8xf32>) -> tensor<?x3x8xf32>'
    compare(interpreter, Case("rms_norm", line, (MERGED, "tensor<8xf32>"), SLICED, attributes=attributes))


def test_add_rms_norm(interpreter: Interpreter) -> None:
    text, attributes = _norm(True, False)
    line = f'%r:2 = "ts.add_rms_norm"(%a0, %a1, %a2) {{{text}}} : ({X}, {X}, tensor<12xf32>) -> ({X}, {X})'
    compare(interpreter, Case("add_rms_norm", line, (X, X, "tensor<12xf32>"), attributes=attributes))


@pytest.mark.parametrize("bias", [False, True])
def test_layer_norm(interpreter: Interpreter, bias: bool) -> None:
    types = (X3, *(["tensor<10xf32>"] * (1 + bias)))
    names = ", ".join(f"%a{at}" for at in range(len(types)))
    segments = f"operandSegmentSizes = array<i32: 1, 1, {int(bias)}>"
    line = f'%r = "ts.layer_norm"({names}) {{eps = 1.0e-5 : f64, {segments}}} : ({", ".join(types)}) -> {X3}'
    compare(interpreter, Case("layer_norm", line, types, attributes={"eps": 1e-5}))


@pytest.mark.parametrize("rows", [1, 5, 70])
@pytest.mark.parametrize("bias", [False, True])
def test_linear(interpreter: Interpreter, rows: int, bias: bool) -> None:
    types = ("tensor<?x84xf32>", "tensor<40x30xf32>", *(["tensor<40xf32>"] * bias))
    names = ", ".join(("%b0", "%a1", "%a2")[: len(types)])
    kinds = ", ".join(("tensor<?x30xf32>", *types[1:]))
    segments = f"operandSegmentSizes = array<i32: 1, 1, {int(bias)}>"
    line = f'%r = "ts.linear"({names}) {{{segments}}} : ({kinds}) -> tensor<?x40xf32>'
    compare(interpreter, Case("linear", line, types, SLICED[:1], rows=rows, tolerance=2e-5))


def test_embedding(interpreter: Interpreter) -> None:
    line = f'%r = "ts.embedding"(%a0, %a1) : (tensor<?xi32>, tensor<7x12xf32>) -> {X}'
    compare(interpreter, Case("embedding", line, ("tensor<?xi32>", "tensor<7x12xf32>"), given={0: TOKENS}))


def test_gather_rows(interpreter: Interpreter) -> None:
    line = f'%r = "ts.gather_rows"(%a0, %a1) : ({X}, tensor<?xi32>) -> {X}'
    indices = np.array([4, 0, 2, 2, 1], np.int32)
    compare(interpreter, Case("gather_rows", line, (X, "tensor<?xi32>"), given={1: indices}))


def test_rope_table_far_from_the_start(interpreter: Interpreter) -> None:
    types = ("tensor<?xi32>", "tensor<6xf32>")
    line = f'%r:2 = "ts.rope_table"(%a0, %a1) {{scaling = 1.5 : f64}} : ({", ".join(types)}) -> ({X}, {X})'
    frequencies = (10000.0 ** (-np.arange(6) / 6)).astype(np.float32)
    given = {0: np.array([0, 1, 77, 131071, 1000003], np.int32), 1: frequencies}
    compare(interpreter, Case("rope_table", line, types, given=given, attributes={"scaling": 1.5}))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("turned", [6, 8])
def test_rope(interpreter: Interpreter, interleaved: bool, turned: int) -> None:
    table = f"tensor<?x{turned}xf32>"
    text = f"interleaved = {str(interleaved).lower()}"
    line = f'%r = "ts.rope"(%b2, %a1, %a2) {{{text}}} : (tensor<?x3x8xf32>, {table}, {table}) -> tensor<?x3x8xf32>'
    given = tables(turned, (1, 2))
    compare(interpreter, Case("rope", line, (MERGED, table, table), SLICED, given, attributes={"interleaved": interleaved}))


def tables(turned: int, operands: tuple[int, int]) -> dict[int, np.ndarray]:
    """Cosines and sines of random angles, both halves alike."""
    angles = np.tile(np.random.default_rng(3).uniform(0, 6, (ROWS, turned // 2)), 2)
    return {at: value.astype(np.float32) for at, value in zip(operands, (np.cos(angles), np.sin(angles)), strict=True)}


CACHE = np.random.default_rng(5).standard_normal((6, 2, 4, 8)).astype(np.float32)
SLOTS = np.array([7, -1, 20, 0, 23], np.int64)


def test_rope_kv_write(interpreter: Interpreter) -> None:
    q, k, table = "tensor<?x4x8xf32>", "tensor<?x2x8xf32>", "tensor<?x6xf32>"
    lines = [
        '%b0 = "ts.slice"(%a0) {start = 0 : i64} : (tensor<?x64xf32>) -> tensor<?x32xf32>',
        '%b1 = "ts.slice"(%a0) {start = 32 : i64} : (tensor<?x64xf32>) -> tensor<?x16xf32>',
        '%b2 = "ts.slice"(%a0) {start = 48 : i64} : (tensor<?x64xf32>) -> tensor<?x16xf32>',
        f'%c0 = "ts.reshape"(%b0) : (tensor<?x32xf32>) -> {q}',
        *(f'%c{at} = "ts.reshape"(%b{at}) : (tensor<?x16xf32>) -> {k}' for at in (1, 2)),
    ]
    kinds = ", ".join((q, k, k, table, table))
    line = f'%r = "ts.rope_kv_write"(%c0, %c1, %c2, %a1, %a2) {{layer = "0", interleaved = false}} : ({kinds}) -> {q}'
    types = ("tensor<?x64xf32>", table, table)
    states, attributes = (CACHE, CACHE[::-1].copy()), {"interleaved": False}
    compare(interpreter, Case("rope_kv_write", line, types, lines, tables(6, (3, 4)), (SLOTS,), None, states, attributes))


@pytest.mark.parametrize(("turned", "one_plus"), [(6, False), (8, True)])
def test_heads_normalised_where_they_are_turned(interpreter: Interpreter, turned: int, one_plus: bool) -> None:
    q, k, table = "tensor<?x4x8xf32>", "tensor<?x2x8xf32>", f"tensor<?x{turned}xf32>"
    style = f"{{eps = 1.0e-6 : f64, cast_before_weight = true, one_plus_weight = {str(one_plus).lower()}}}"
    kinds = ", ".join((q, k, k, table, table))
    lines = [
        *(f'%a{at} = "ts.input"() {{sym = "a{at}"}} : () -> {kind}' for at, kind in enumerate((q, k, k, table, table))),
        *(f'%a{at} = "ts.input"() {{sym = "a{at}"}} : () -> tensor<8xf32>' for at in (5, 6)),
        f'%b0 = "ts.rms_norm"(%a0, %a5) {style} : ({q}, tensor<8xf32>) -> {q}',
        f'%b1 = "ts.rms_norm"(%a1, %a6) {style} : ({k}, tensor<8xf32>) -> {k}',
        f'%r = "ts.rope_kv_write"(%b0, %b1, %a2, %a3, %a4) {{layer = "0", interleaved = false}} : ({kinds}) -> {q}',
    ]
    generator = np.random.default_rng(8)
    given = [generator.standard_normal((ROWS, heads, 8)).astype(np.float32) for heads in (4, 2, 2)]
    cosine, sine = tables(turned, (0, 1)).values()
    weights = [generator.standard_normal(8).astype(np.float32) for _ in range(2)]
    out, caches = np.full((ROWS, 4, 8), 77, np.float32), [CACHE.copy(), CACHE[::-1].copy()]
    with modules.context():
        module = modules.parse(step([*lines, "return"]))
        *_, first, second, write, _ = (view.operation for view in modules.step_block(module).operations)
        assert [norm_unless_turned(norm, SETTING).steps for norm in (first, second)] == [(), ()]
        made = rope_kv_write(write, SETTING)
    nothing = np.zeros(0, np.float32)
    operands = [nothing, nothing, given[2], cosine, sine, SLOTS, out, *caches, given[0], weights[0], given[1], weights[1]]
    interpreter.run(made, operands, {"rows": ROWS, "logit_rows": ROWS})
    q_normed, k_normed = (_normed(x, weight + one_plus) for x, weight in zip(given, weights, strict=False))
    expected = [CACHE.copy(), CACHE[::-1].copy()]
    for row, slot in enumerate(SLOTS):
        if slot >= 0:
            for cache, values in zip(expected, (_turned(k_normed, cosine, sine)[row], given[2][row]), strict=True):
                cache[slot // 4, :, slot % 4] = values
    np.testing.assert_allclose(out, _turned(q_normed, cosine, sine), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(caches, expected, rtol=1e-5, atol=1e-5)


def _normed(x: np.ndarray, factor: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * factor


def _turned(x: np.ndarray, cosine: np.ndarray, sine: np.ndarray) -> np.ndarray:
    """Halves of the first columns against each other, rows by tables."""
    turned = cosine.shape[1]
    first, second = np.split(x[..., :turned], 2, axis=-1)
    whole = x[..., :turned] * cosine[:, None] + np.concatenate((-second, first), -1) * sine[:, None]
    return np.concatenate((whole, x[..., turned:]), -1)


KINDS = ("silu", "gelu", "gelu_tanh", "relu", "relu2")


@pytest.mark.parametrize("kind", KINDS)
def test_activations(interpreter: Interpreter, kind: str) -> None:
    line = f'%r = "ts.activation"(%a0) {{kind = "{kind}"}} : ({X}) -> {X}'
    compare(interpreter, Case("activation", line, (X,), attributes={"kind": kind}))


@pytest.mark.parametrize("kind", KINDS[:2])
def test_gated_activation_of_windows(interpreter: Interpreter, kind: str) -> None:
    lines = [f'%b{at} = "ts.slice"(%a0) {{start = {12 * at} : i64}} : (tensor<?x24xf32>) -> {X}' for at in (0, 1)]
    line = f'%r = "ts.gated_activation"(%b0, %b1) {{activation = "{kind}"}} : ({X}, {X}) -> {X}'
    compare(interpreter, Case("gated_activation", line, ("tensor<?x24xf32>",), lines, attributes={"activation": kind}))


@pytest.mark.parametrize(
    ("name", "text", "attributes"),
    [("scale", "{factor = 0.25 : f64}", {"factor": 0.25}), ("softcap", "{cap = 3.0 : f64}", {"cap": 3.0})],
)
def test_elementwise(interpreter: Interpreter, name: str, text: str, attributes: dict[str, float]) -> None:
    line = f'%r = "ts.{name}"(%a0) {text} : ({X3}) -> {X3}'
    compare(interpreter, Case(name, line, (X3,), attributes={**attributes}))


@pytest.mark.parametrize("name", ["add", "mul"])
def test_elementwise_of_a_window_and_a_dense_array(interpreter: Interpreter, name: str) -> None:
    kind = "tensor<?x3x8xf32>"
    line = f'%r = "ts.{name}"(%b2, %a1) : ({kind}, {kind}) -> {kind}'
    compare(interpreter, Case(name, line, (MERGED, kind), SLICED))


def test_all_rows_are_tested() -> None:
    assert len(TOKENS) == ROWS
