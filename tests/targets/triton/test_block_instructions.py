"""Layers of weights in blocks and attention over 8-bit floats for each architecture: they fit it and use its instructions."""

from __future__ import annotations

import pytest
from tokenspeed.ir import module as modules
from tokenspeed.targets.accelerator import Accelerator
from tokenspeed.targets.registry import ACCELERATORS
from tokenspeed.targets.triton.attention import cached_attention
from tokenspeed.targets.triton.block_linear import block_linear
from tokenspeed.targets.triton.build import build, compiled
from tokenspeed.targets.triton.kernel import DeviceSetting, Launch

from ...ir.modules import step
from .interpreter import chosen_launch
from .test_instructions import ATTENTION, HEADS, INSTRUCTIONS, MATRIX, ROWS, SEGMENTS, check_header

LAYER = (
    f'%a0 = "ts.input"() {{sym = "a0"}} : () -> {ROWS}',
    f'%a1 = "ts.weight"() {{sym = "a1", parameters = ["a1"], stored = "q4_0"}} : () -> {MATRIX}',
    f'%r = "ts.linear"(%a0, %a1) {{{SEGMENTS}1, 1, 0>}} : ({ROWS}, {MATRIX}) -> tensor<?x64xbf16>',
)
WIDE, FLOATS = "tensor<?x256xbf16>", "tensor<64x256xbf16>"
OF_FLOATS = (
    f'%a0 = "ts.input"() {{sym = "a0"}} : () -> {WIDE}',
    f'%a1 = "ts.weight"() {{sym = "a1", parameters = ["a1"], stored = "e4m3_128"}} : () -> {FLOATS}',
    f'%r = "ts.linear"(%a0, %a1) {{{SEGMENTS}1, 1, 0>}} : ({WIDE}, {FLOATS}) -> tensor<?x64xbf16>',
)
QUERIES = (f'%a0 = "ts.input"() {{sym = "a0"}} : () -> {HEADS}', ATTENTION)


def launches(accelerator: Accelerator) -> list[Launch]:
    """Layers of 16 rows, and 16 decoding sequences."""
    setting = DeviceSetting(accelerator, 256, 16, 16, 64, 8, "f8e4m3")
    made = []
    with modules.context():
        for lines, template in ((LAYER, block_linear), (OF_FLOATS, block_linear), (QUERIES, cached_attention)):
            module = modules.parse(step([*lines, "return"]))
            operation = [view.operation for view in modules.step_block(module).operations][-2]
            steps = [step.function for step in template(operation, setting).steps]
            found = [chosen_launch(function, {"rows": 16, "logit_rows": 16}) for function in steps]
            made.append(next(launch for launch in found if launch is not None and "split_rows" not in launch.source))
    return made


@pytest.mark.parametrize("target", ["a100", "h200", "b200", "mi300x", "mi355x"])
def test_machine_code(target: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    accelerator, cache = ACCELERATORS[target], str(tmp_path_factory.mktemp("triton"))
    stage, instructions = INSTRUCTIONS[accelerator.arch]
    for launch, instruction in zip(
        launches(accelerator), ("", "mfma" if accelerator.kind == "hip" else "mma", instructions["split"]), strict=True
    ):
        kernel, binary = build(launch, accelerator, cache)
        check_header(kernel, binary, accelerator)
        assert instruction in compiled(launch, accelerator, cache).asm[stage]


def test_what_does_not_fit_has_smaller_tiles_to_go_on_with() -> None:
    layer, *_ = launches(ACCELERATORS["h200"])
    assert layer.otherwise is not None and layer.otherwise.otherwise is None
    assert layer.otherwise.grid[2] == layer.grid[2] and layer.otherwise.parameters[:-1] == layer.parameters[:-1]
