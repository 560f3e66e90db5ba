"""Mixtures of experts, interpreted: routing, and the experts' products over pairs in the order of experts."""

from __future__ import annotations

import numpy as np
import pytest

from .compared import Case, compare
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


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value} : i64"
    return f"{value} : f64" if isinstance(value, float) else str(value)


CASES = [("silu", False, 1, None), ("swiglu_clamped", True, 40, None), ("silu", False, 3, 4), ("swiglu_clamped", True, 40, 2)]


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
