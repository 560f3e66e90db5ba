"""Builds the kernels of cases: needs Triton and MLIR, no device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tokenspeed.ir import module as modules
from tokenspeed.ir.mlir import ir
from tokenspeed.plans.device_kernels import DeviceKernel
from tokenspeed.plans.errors import ModelError
from tokenspeed.targets.accelerator import Accelerator
from tokenspeed.targets.registry import ACCELERATORS
from tokenspeed.targets.triton.build import build
from tokenspeed.targets.triton.kernel import DeviceOperation, DeviceSetting, FunctionTemplate, Launch
from tokenspeed.targets.triton.library import TRITON_KERNELS
from tokenspeed.targets.triton.release import VERSION

from . import cases as known
from .all_cases import all_cases
from .bundle import BuiltCase, Bundle, Step, write
from .cases import Case

Template = Callable[[ir.Operation, DeviceSetting], DeviceOperation]


def build_bundle(target: str, folder: Path, only: str = "") -> int:
    """Build every case for a target whose name contains `only`; gives back how many there are."""
    setting = setting_of(ACCELERATORS[target])
    binaries: dict[str, bytes] = {}

    def make(launch: Launch) -> DeviceKernel:
        try:
            kernel, binary = build(launch, setting.accelerator)
        except ModelError:
            if launch.otherwise is None:
                raise
            return make(launch.otherwise)
        binaries[kernel.entry] = binary
        return kernel

    built = tuple(build_case(case, setting, make) for case in all_cases() if only in case.name)
    write(folder, Bundle(target, f"triton {VERSION}", built), binaries)
    return len(built)


def setting_of(accelerator: Accelerator, blocks_per_sequence: int = known.BLOCKS_PER_SEQUENCE) -> DeviceSetting:
    """What the steps of cases are like."""
    most = known.MOST_DECODING
    return DeviceSetting(accelerator, known.MOST_ROWS, most, most, known.BLOCK_TOKENS, blocks_per_sequence)


def build_case(
    case: Case, setting: DeviceSetting, make: Callable[[Launch], DeviceKernel], template: Template | None = None
) -> BuiltCase:
    """A case's kernels, each made by `make`: as `template` has them, else as the library does."""
    setting = replace(setting, kv_dtype=case.kv_dtype)
    inputs = [f"%a{at} = {_made(at, case)} : () -> {kind}" for at, kind in enumerate(case.types)]
    lines = "\n".join([*inputs, case.line, "return"])
    with modules.context():
        module = modules.parse(f"module {{ func.func @step() {{\n{lines}\n}} }}")
        operation = [view.operation for view in modules.step_block(module).operations][-2]
        kernels = (kernel for kernel in TRITON_KERNELS if kernel.operation == operation.name)
        device = template or next(kernel.device for kernel in kernels if bool(kernel.blocks) == bool(case.stored))
        assert device is not None
        made = device(operation, setting)
    steps = []
    for step in made.steps:
        launch = _chosen(step.function, case)
        if launch is not None:
            operands = (case.places.get(item, item) if isinstance(item, int) else item for item in (*step.inputs, *step.outputs))
            steps.append(Step(make(launch), tuple(operands)))
    symbols = {"rows": case.rows, "logit_rows": case.logit_rows}
    buffers = []
    for item in made.intermediates:
        elements = 1
        for size in item.shape:
            elements *= symbols[size] if isinstance(size, str) else size
        buffers.append((item.name, item.dtype, elements))
    return BuiltCase(case.name, tuple(steps), tuple(buffers))


def _made(operand: int, case: Case) -> str:
    if operand not in case.stored:
        return f'"ts.input"() {{sym = "a{operand}"}}'
    return f'"ts.weight"() {{sym = "a{operand}", parameters = ["a{operand}"], stored = "{case.stored[operand]}"}}'


def _chosen(function: FunctionTemplate, case: Case) -> Launch | None:
    decode = function.decode is not None and case.rows == case.logit_rows
    choices = function.decode if decode and function.decode is not None else function.variants
    return choices([case.rows if function.by == "rows" else case.logit_rows])[0][1]
