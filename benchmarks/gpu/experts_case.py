"""A mixture's experts as a case: rows that go to experts at random."""

from __future__ import annotations

import torch
from torch import Tensor

from .cases import Case


def experts_case(rows: int, experts: int, top_k: int, hidden: int, inner: int) -> Case:
    """`rows` rows, each of `top_k` of `experts` experts, with `inner` columns between their two products."""
    types = (
        f"tensor<?x{hidden}xbf16>",
        f"tensor<?x{top_k}xi32>",
        f"tensor<?x{top_k}xf32>",
        f"tensor<{experts}x{2 * inner}x{hidden}xbf16>",
        f"tensor<{experts}x{hidden}x{inner}xbf16>",
    )
    segments = "operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 0, 0>"
    text = f'activation = "silu", alpha = 0.0 : f64, limit = 0.0 : f64, {segments}'
    line = f'%r = "ts.moe_experts"(%a0, %a1, %a2, %a3, %a4) {{{text}}} : ({", ".join(types)}) -> {types[0]}'

    def operands() -> list[Tensor]:
        indices = torch.rand(rows, experts).argsort(1)[:, :top_k].int().contiguous()
        gate_up, down = (torch.randn(experts, *shape).bfloat16() * 0.02 for shape in ((2 * inner, hidden), (hidden, inner)))
        weights = torch.rand(rows, top_k).softmax(1)
        return [torch.randn(rows, hidden).bfloat16(), indices, weights, gate_up, down, torch.empty(rows, hidden).bfloat16()]

    def reference(given: list[Tensor]) -> list[Tensor]:
        x, indices, weights, gate_up, down = given[:5]
        total = torch.zeros(rows, hidden, dtype=torch.float64)
        for expert in indices.unique().tolist():
            at, place = (indices == expert).nonzero(as_tuple=True)
            gate, up = (x[at].double() @ gate_up[expert].double().T).bfloat16().double().chunk(2, 1)
            made = (torch.nn.functional.silu(gate).bfloat16().double() * up).bfloat16().double()
            result = (made @ down[expert].double().T).bfloat16().double()
            total.index_add_(0, at, result * weights[at, place, None].double())
        return [total]

    touched = experts * (1 - (1 - top_k / experts) ** rows)
    moved = 2.0 * (touched * 3 * hidden * inner + 2 * rows * hidden)
    name = f"experts {experts} x {hidden} x {inner}, {rows} rows"
    operations = 6.0 * rows * top_k * hidden * inner
    return Case(name, rows, rows, types, line, operands, 1, (3, 4), reference, None, moved, operations)
