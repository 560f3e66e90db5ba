"""Mixtures of experts, interpreted: routing, and the experts' products over pairs in the order of experts."""

from __future__ import annotations

import numpy as np
import pytest
from tokenspeed.ir import module as modules
from tokenspeed.targets.triton.mixture import moe_route

from ...ir.modules import step
from .compared import SETTING, Case, compare
from .interpreter import Interpreter

EXPERTS, HIDDEN, INNER, TOP = 6, 12, 10, 2
ALL = 3 * EXPERTS


ROUTES = [
    ("softmax", 1, False, False),
    ("softmax", 1, True, True),
    ("softmax_selected", 1, False, False),
    ("sigmoid", 3, True, True),
]


@pytest.mark.parametrize(("scoring", "groups", "normalize", "bias"), ROUTES)
def test_routes(interpreter: Interpreter, scoring: str, groups: int, normalize: bool, bias: bool) -> None:
    attributes = {"top_k": TOP, "scoring": scoring, "normalize": normalize, "scale": 1.5}
    attributes |= {"groups": groups, "top_groups": 2 if groups > 1 else 1, "group_best": 1}
    text = ", ".join(
        f"{name} = {_text(value)}" for name, value in {**attributes, "scoring": f'"{scoring}"'}.items() if name != "segments"
    )
    segments = f"operandSegmentSizes = array<i32: 1, {int(bias)}>"
    types = (f"tensor<?x{EXPERTS}xf32>", *([f"tensor<{EXPERTS}xf32>"] * bias))
    names = ", ".join(("%a0", "%a1")[: len(types)])
    results = f"(tensor<?x{TOP}xi32>, tensor<?x{TOP}xf32>)"
    line = f'%r:2 = "ts.moe_route"({names}) {{{text}, {segments}}} : ({", ".join(types)}) -> {results}'
    compare(interpreter, Case("moe_route", line, types, attributes=attributes))


def test_a_row_of_no_numbers_has_experts_and_weights_of_no_numbers(interpreter: Interpreter) -> None:
    attributes = 'top_k = 2 : i64, scoring = "softmax", normalize = true, scale = 1.0 : f64, groups = 1 : i64'
    attributes += ", top_groups = 1 : i64, group_best = 1 : i64, operandSegmentSizes = array<i32: 1, 0>"
    results = f"(tensor<?x{TOP}xi32>, tensor<?x{TOP}xf32>)"
    lines = [f'%a = "ts.input"() {{sym = "a"}} : () -> tensor<?x{EXPERTS}xf32>']
    lines += [f'%r:2 = "ts.moe_route"(%a) {{{attributes}}} : (tensor<?x{EXPERTS}xf32>) -> {results}', "return"]
    logits, indices = np.zeros((2, EXPERTS), np.float32), np.full((2, TOP), 77, np.int32)
    logits[0, 3], logits[1] = np.nan, [0, 3, 3, 1, 2, 3]
    weights = np.zeros((2, TOP), np.float32)
    with modules.context():
        module = modules.parse(step(lines))
        made = moe_route([view.operation for view in modules.step_block(module).operations][1], SETTING)
    interpreter.run(made, [logits, indices, weights], {"rows": 2, "logit_rows": 2})
    assert np.isnan(weights[0]).all() and ((indices >= 0) & (indices < EXPERTS)).all()
    assert indices[1].tolist() == [1, 2]  # the first of equals


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value} : i64"
    return f"{value} : f64" if isinstance(value, float) else str(value)


CASES = [
    ("silu", False, 1, None),
    ("swiglu_clamped", True, 1, None),
    ("swiglu_clamped", True, 40, None),
    ("silu", False, 3, 4),
    ("swiglu_clamped", True, 40, 2),
]


@pytest.mark.parametrize(("activation", "bias", "rows", "first"), CASES)
def test_experts(interpreter: Interpreter, activation: str, bias: bool, rows: int, first: int | None) -> None:
    """`first`: these are experts of more, from that number on."""
    generator = np.random.default_rng(2)
    # no row goes to the last expert
    indices = np.argsort(generator.random((rows, EXPERTS - 1 if first is None else ALL)), axis=1)[:, :TOP].astype(np.int32)
    types = [
        *(f"tensor<?x{HIDDEN}xf32>", f"tensor<?x{TOP}xi32>", f"tensor<?x{TOP}xf32>"),
        *(f"tensor<{EXPERTS}x{2 * INNER}x{HIDDEN}xf32>", f"tensor<{EXPERTS}x{HIDDEN}x{INNER}xf32>"),
        *([f"tensor<{EXPERTS}x{2 * INNER}xf32>", f"tensor<{EXPERTS}x{HIDDEN}xf32>"] * bias),
        *([f"tensor<{EXPERTS}xi32>"] * (first is not None)),
    ]
    segments = ", ".join("1" * 5 + str(int(bias)) * 2 + str(int(first is not None)))
    text = f'activation = "{activation}", alpha = 1.7 : f64, limit = 0.9 : f64, operandSegmentSizes = array<i32: {segments}>'
    text += f", experts = {ALL} : i64"
    names = ", ".join(f"%a{at}" for at in range(len(types)))
    line = f'%r = "ts.moe_experts"({names}) {{{text}}} : ({", ".join(types)}) -> {types[0]}'
    attributes = {"activation": activation, "alpha": 1.7, "limit": 0.9}
    given = {1: indices} if first is None else {1: indices, len(types) - 1: first + np.arange(EXPERTS, dtype=np.int32)}
    compare(interpreter, Case("moe_experts", line, types, (), given, (), None, (), attributes, rows, rows, 2e-5))
