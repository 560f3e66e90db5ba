"""`ts.recurrence`: text round trip, what its verifier refuses, its meaning row by row, its cost and placement."""

from __future__ import annotations

import pytest
import torch
from tokenspeed.ir import dialect, module
from tokenspeed.ir.mlir import ir
from tokenspeed.ir.recurrence import States, recur
from tokenspeed.ir.sharding import REPLICATE, PlacementConflict, results_on_axis
from tokenspeed.targets.cost import cost_of

GROUPS = ", ".join(["1", "1", *["0"] * (dialect.RECURRENCE_OPERANDS - 2)])
ENDS = ", ".join(["1", "1", *["0"] * (dialect.RECURRENT_STATES - 1)])
ROWS, STATE, WEIGHT = "tensor<?x3xf32>", "tensor<?x3xf32>", "tensor<3xf32>"
MUL = '{\\"args\\": [{\\"operand\\": 0}, {\\"operand\\": 1}], \\"kwargs\\": {}}'


def decaying_sum(rows: int = 1, state: str = STATE, out: str = "%sum", result: str = ROWS, ending: str = "%sum, %sum") -> str:
    """state <- state * w + x; the result is the new state."""
    segments = "operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>"
    return f"""
module {{
  func.func @step() {{
    %x = "ts.input"() {{sym = "x"}} : () -> {ROWS}
    %w = "ts.weight"() {{parameters = ["w"], sym = "w"}} : () -> {WEIGHT}
    %y = "ts.recurrence"(%x, %w) ({{
    ^bb0(%row: {ROWS}, %decay: {WEIGHT}, %old: {state}):
      %kept = "ts.aten"(%row, %decay) {{arguments = "{MUL}", layouts = "t.,-->t.", {segments}, target = "aten.mul.Tensor"}}
        : ({ROWS}, {WEIGHT}) -> {ROWS}
      %sum = "ts.aten"(%kept, %row) {{arguments = "{MUL}", layouts = "t.,t.->t.", {segments}, target = "aten.add.Tensor"}}
        : ({ROWS}, {ROWS}) -> {ROWS}
      "ts.step"({ending}) {{operandSegmentSizes = array<i32: {ENDS}>}} : ({ROWS}, {ROWS}) -> ()
    }}) {{layer = "0", operandSegmentSizes = array<i32: {GROUPS}>, rows = {rows} : i64}} : ({ROWS}, {WEIGHT}) -> {result}
    return
  }}
}}
""".replace('"ts.aten"(%row, %decay)', '"ts.aten"(%old, %decay)' if state == ROWS else '"ts.aten"(%row, %decay)')


def parsed(text: str) -> ir.Module:
    return module.parse(text)


def recurrence_of(found: ir.Module) -> ir.Operation:
    return next(item for item in module.walk(module.step_block(found)) if item.name == "ts.recurrence")


def test_it_prints_and_parses_back() -> None:
    with module.context():
        printed = str(parsed(decaying_sum()))
        assert str(parsed(printed)) == printed


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (decaying_sum(rows=0), "0 operands of rows among 2"),
        (decaying_sum(rows=2), "expects 2 operands of rows"),
        (decaying_sum(state="tensor<?x4xf32>"), "body that gives"),
        (decaying_sum(state="tensor<3xf32>"), r"expected \[rows, ...\]"),
        (decaying_sum(result="tensor<?x4xf32>"), "body that gives"),
    ],
)
def test_the_verifier_refuses(text: str, problem: str) -> None:
    with module.context(), pytest.raises(module.IrError, match=problem):
        module.verify(parsed(text))


def test_meaning_row_by_row() -> None:
    """Two sequences in pieces, one of which starts anew at position 0 over an old state."""
    decay = torch.tensor([0.5, 1.0, 2.0])
    generator = torch.Generator().manual_seed(1)
    one, other = (torch.randn(count, 3, generator=generator) for count in (5, 3))

    def whole(x: torch.Tensor) -> torch.Tensor:
        state, out = torch.zeros(3), []
        for row in x:
            state = state * decay + row
            out.append(state)
        return torch.stack(out)

    kept: States = {(0, 1): [torch.full((3,), 9.0)]}
    with module.context():
        held = parsed(decaying_sum())
        operation = recurrence_of(held)

        def run(x: torch.Tensor, spans: list[tuple[int, int, int]], positions: list[int]) -> torch.Tensor:
            return recur(operation, [x, decay], spans, torch.tensor(positions), kept, 0, torch.float32)

        first = run(torch.cat([one[:2], other]), [(0, 0, 2), (1, 2, 5)], [0, 1, 0, 1, 2])
        second = run(one[2:], [(0, 0, 3)], [2, 3, 4])
    assert torch.allclose(torch.cat([first[:2], second]), whole(one))
    assert torch.allclose(first[2:], whole(other))


def test_cost_and_placement() -> None:
    with module.context():
        held = parsed(decaying_sum())
        operation = recurrence_of(held)
        assert cost_of(operation, 8).flops == 8 * (3 + 3)
        assert cost_of(operation, 8).activation_bytes > cost_of(operation, 4).activation_bytes > 4 * 3 * 4 * 4
        assert results_on_axis(operation, [REPLICATE, REPLICATE], "tp") == [REPLICATE]
        with pytest.raises(PlacementConflict):
            results_on_axis(operation, ["shard(1)", REPLICATE], "tp")
