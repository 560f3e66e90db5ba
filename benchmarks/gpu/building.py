"""Builds the kernels of cases: needs Triton and MLIR, no device."""

from __future__ import annotations

from pathlib import Path

from tokenspeed.ir import module as modules
from tokenspeed.targets.registry import ACCELERATORS
from tokenspeed.targets.triton.build import VERSION, build
from tokenspeed.targets.triton.kernel import DeviceSetting, FunctionTemplate, Launch
from tokenspeed.targets.triton.library import TRITON_KERNELS

from . import cases as known
from .bundle import BuiltCase, Bundle, Step, write
from .cases import Case


def build_bundle(target: str, folder: Path) -> int:
    """Build every case for a target; gives back how many there are."""
    setting = DeviceSetting(
        ACCELERATORS[target],
        known.MOST_ROWS,
        known.MOST_DECODING,
        known.MOST_DECODING,
        known.BLOCK_TOKENS,
        known.BLOCKS_PER_SEQUENCE,
    )
    binaries: dict[str, bytes] = {}
    built = tuple(_built(case, setting, binaries) for case in known.cases())
    write(folder, Bundle(target, f"triton {VERSION}", built), binaries)
    return len(built)


def _built(case: Case, setting: DeviceSetting, binaries: dict[str, bytes]) -> BuiltCase:
    inputs = [f'%a{at} = "ts.input"() {{sym = "a{at}"}} : () -> {kind}' for at, kind in enumerate(case.types)]
    lines = "\n".join([*inputs, case.line, "return"])
    with modules.context():
        module = modules.parse(f"module {{ func.func @step() {{\n{lines}\n}} }}")
        operation = [view.operation for view in modules.step_block(module).operations][-2]
        device = next(kernel.device for kernel in TRITON_KERNELS if kernel.operation == operation.name)
        assert device is not None
        template = device(operation, setting)
    steps = []
    for step in template.steps:
        launch = _chosen(step.function, case)
        if launch is not None:
            kernel, binary = build(launch, setting.accelerator)
            binaries[kernel.entry] = binary
            steps.append(Step(kernel, (*step.inputs, *step.outputs)))
    symbols = {"rows": case.rows, "logit_rows": case.logit_rows}
    buffers = []
    for item in template.intermediates:
        elements = 1
        for size in item.shape:
            elements *= symbols[size] if isinstance(size, str) else size
        buffers.append((item.name, item.dtype, elements))
    return BuiltCase(case.name, tuple(steps), tuple(buffers))


def _chosen(function: FunctionTemplate, case: Case) -> Launch | None:
    decode = function.decode is not None and case.rows == case.logit_rows
    choices = function.decode if decode and function.decode is not None else function.variants
    return choices([case.rows if function.by == "rows" else case.logit_rows])[0][1]
