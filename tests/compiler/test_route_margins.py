"""Margins of choices of experts."""

from __future__ import annotations

import pytest
import torch
from tokenspeed.compiler.route_margins import margin
from tokenspeed.ir import module as modules


@pytest.mark.parametrize(("groups", "top_groups", "expected"), [(1, 1, 0.125), (2, 1, 0.0)])
def test_the_closest_row_counts(groups: int, top_groups: int, expected: float) -> None:
    attributes = f'top_k = 2 : i64, scoring = "softmax", normalize = 1 : i64, scale = 1.0 : f64, groups = {groups} : i64'
    attributes += f", top_groups = {top_groups} : i64, group_best = 1 : i64"
    lines = [
        '%x = "ts.input"() {sym = "x"} : () -> tensor<?x4xf32>',
        f'%i, %w = "ts.moe_route"(%x) {{{attributes}}} : (tensor<?x4xf32>) -> (tensor<?x2xi32>, tensor<?x2xf32>)',
        "return",
    ]
    body = "\n".join(lines)
    with modules.context():
        module = modules.parse(f"module {{ func.func @step() {{\n{body}\n}} }}")
        route = [view.operation for view in modules.step_block(module).operations][1]
        logits = torch.tensor([[8.0, 1.0, 4.0, 3.0], [2.0, -4.0, 1.0, 0.0]])
        assert margin(route, logits) == expected
