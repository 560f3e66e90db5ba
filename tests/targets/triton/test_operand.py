"""Where operands lie is what lowering makes of them."""

from __future__ import annotations

from tokenspeed.ir import module as modules
from tokenspeed.targets.registry import ACCELERATORS
from tokenspeed.targets.triton.linear_tiles import tiles_for
from tokenspeed.targets.triton.operand import Layout, layout_of

from ...ir.modules import step

BODY = [
    '%a0 = "ts.input"() {sym = "a0"} : () -> tensor<?x96xbf16>',
    '%a1 = "ts.slice"(%a0) {start = 68 : i64} : (tensor<?x96xbf16>) -> tensor<?x24xbf16>',
    '%a2 = "ts.reshape"(%a1) : (tensor<?x24xbf16>) -> tensor<?x3x8xbf16>',
    '%a3 = "ts.slice"(%a2) {start = 2 : i64} : (tensor<?x3x8xbf16>) -> tensor<?x3x4xbf16>',
    '%a4 = "ts.reshape"(%a3) : (tensor<?x3x4xbf16>) -> tensor<?x12xbf16>',
    "return",
]


def test_slices_are_windows_and_reshapes_views_or_copies() -> None:
    with modules.context():
        module = modules.parse(step(BODY))
        block = modules.step_block(module)
        found = [layout_of(view.operation.results[0]) for view in list(block.operations)[:-1]]
    assert found == [
        Layout("bf16", (None, 96), (96, 1)),
        Layout("bf16", (None, 24), (96, 1), 68),
        Layout("bf16", (None, 3, 8), (96, 8, 1), 68),
        Layout("bf16", (None, 3, 4), (96, 8, 1), 70),
        Layout("bf16", (None, 12), (12, 1)),
    ]
    assert [layout.alignment for layout in found] == [16, 8, 8, 4, 8]


def test_a_layer_whose_rows_begin_anywhere_is_not_copied_by_descriptors() -> None:
    h200 = ACCELERATORS["h200"]
    assert tiles_for(h200, "bf16", 2048, 4096, 4096, aligned=True).way == "many_rows_by_descriptors"
    assert tiles_for(h200, "bf16", 2048, 4096, 4096, aligned=False).way == "many_rows"
    assert tiles_for(h200, "bf16", 2048, 4098, 4096, aligned=True).way == "many_rows"
