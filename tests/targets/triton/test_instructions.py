"""Operations with products, as plans for each architecture have them: what their machine code is, without a device to run it."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from tokenspeed.ir import module as modules
from tokenspeed.plans.device_kernels import DeviceKernel
from tokenspeed.plans.device_limits import ELF_MACHINES, LIMITS
from tokenspeed.targets.accelerator import Accelerator
from tokenspeed.targets.registry import ACCELERATORS
from tokenspeed.targets.triton.build import build, compiled
from tokenspeed.targets.triton.kernel import DeviceSetting, Launch
from tokenspeed.targets.triton.library import TRITON_KERNELS
from tokenspeed.targets.triton.mixture import moe_experts

from ...ir.modules import step
from .interpreter import chosen_launch

ROWS, HEADS = "tensor<?x128xbf16>", "tensor<?x4x32xbf16>"
MATRIX, EXPERTS = "tensor<64x128xbf16>", ("tensor<4x256x128xbf16>", "tensor<4x128x128xbf16>")
PAIRS = ("tensor<?x2xi32>", "tensor<?x2xf32>")
SEGMENTS = "operandSegmentSizes = array<i32: "
SCORES = f'kv_heads = 2 : i64, layer = "0", scale = 0.125 : f64, softcap = 0.0 : f64, window = 0 : i64, {SEGMENTS}1, 0>'
ATTENTION = f'%r = "ts.cached_attention"(%a0) {{{SCORES}}} : ({HEADS}) -> {HEADS}'
MIXTURE = f'activation = "silu", alpha = 1.0 : f64, limit = 0.0 : f64, {SEGMENTS}1, 1, 1, 1, 1, 0, 0, 0>'
SHARED_OUT = f'activation = "silu", alpha = 1.0 : f64, experts = 16 : i64, limit = 0.0 : f64, {SEGMENTS}1, 1, 1, 1, 1, 0, 0, 1>'
OF_RANK = (ROWS, *PAIRS, *EXPERTS, "tensor<4xi32>")
"""Operands of a mixture of which a rank has some of the experts."""
OPERATIONS: dict[str, tuple[str, tuple[str, ...], int, int]] = {
    "few_rows": (
        f'%r = "ts.linear"(%a0, %a1) {{{SEGMENTS}1, 1, 0>}} : ({ROWS}, {MATRIX}) -> tensor<?x64xbf16>',
        (ROWS, MATRIX),
        16,
        16,
    ),
    "split": (ATTENTION, (HEADS,), 16, 16),
    "chunks": (ATTENTION, (HEADS,), 256, 16),
    "gate_up": (
        f'%r = "ts.moe_experts"(%a0, %a1, %a2, %a3, %a4) {{{MIXTURE}}} : ({", ".join((ROWS, *PAIRS, *EXPERTS))}) -> {ROWS}',
        (ROWS, *PAIRS, *EXPERTS),
        256,
        16,
    ),
}
"""Of a kernel with products: line of its operation, types of the operands, rows and logit rows of the bucket."""

FEW, MANY = ("few_rows", "split"), ("chunks", "gate_up")
INSTRUCTIONS = {
    "sm_80": ("ptx", dict.fromkeys((*FEW, *MANY), "mma.sync.aligned.m16n8k16")),
    "sm_90a": ("ptx", dict.fromkeys(FEW, "mma.sync.aligned.m16n8k16") | dict.fromkeys(MANY, "wgmma.mma_async")),
    "sm_100a": ("ptx", dict.fromkeys(FEW, "mma.sync.aligned.m16n8k16") | dict.fromkeys(MANY, "tcgen05.mma")),
    "gfx942": ("amdgcn", dict.fromkeys((*FEW, *MANY), "v_mfma_f32_")),
    "gfx950": ("amdgcn", dict.fromkeys((*FEW, *MANY), "v_mfma_f32_")),
}
"""Stage of the code, and by kernel what its products are done with there."""

FLAGS = {"sm_80": 80, "sm_90a": 90, "sm_100a": 100, "gfx942": 0x4C, "gfx950": 0x4F}
"""What the ELF header's flags name the architecture by: the number of it, or LLVM's EF_AMDGPU_MACH."""


def launches(accelerator: Accelerator) -> Iterator[tuple[str, Launch]]:
    """The kernels of `OPERATIONS` as their buckets launch them, by name."""
    setting = DeviceSetting(accelerator, 256, 16, 16, 64, 8)
    with modules.context():
        for name, (line, types, rows, logit_rows) in OPERATIONS.items():
            inputs = [f'%a{at} = "ts.input"() {{sym = "a{at}"}} : () -> {kind}' for at, kind in enumerate(types)]
            module = modules.parse(step([*inputs, line, "return"]))
            operation = [view.operation for view in modules.step_block(module).operations][-2]
            device = next(kernel.device for kernel in TRITON_KERNELS if kernel.operation == operation.name and kernel.device)
            chosen = [
                chosen_launch(part.function, {"rows": rows, "logit_rows": logit_rows})
                for part in device(operation, setting).steps
            ]
            yield name, next(launch for launch in chosen if launch is not None and launch.source.endswith(f".{name}"))


@pytest.mark.parametrize("target", ["a100", "h200", "b200", "mi300x", "mi355x"])
def test_machine_code_of_products(target: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    accelerator, cache = ACCELERATORS[target], str(tmp_path_factory.mktemp("triton"))
    stage, instructions = INSTRUCTIONS[accelerator.arch]
    for name, launch in launches(accelerator):
        kernel, binary = build(launch, accelerator, cache)
        check_header(kernel, binary, accelerator)
        assert instructions[name] in compiled(launch, accelerator, cache).asm[stage], name


@pytest.mark.parametrize("target", ["a100", "h200", "b200", "mi300x", "mi355x"])
def test_experts_that_ranks_share_out_build(target: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The kernels that tell a rank's own experts from others'."""
    accelerator, cache = ACCELERATORS[target], str(tmp_path_factory.mktemp("triton"))
    line = f'%r = "ts.moe_experts"(%a0, %a1, %a2, %a3, %a4, %a5) {{{SHARED_OUT}}} : ({", ".join(OF_RANK)}) -> {ROWS}'
    inputs = [f'%a{at} = "ts.input"() {{sym = "a{at}"}} : () -> {kind}' for at, kind in enumerate(OF_RANK)]
    with modules.context():
        module = modules.parse(step([*inputs, line, "return"]))
        operation = [view.operation for view in modules.step_block(module).operations][-2]
        steps = moe_experts(operation, DeviceSetting(accelerator, 256, 16, 16, 64, 8)).steps
    for part in steps:
        launch = chosen_launch(part.function, {"rows": 16, "logit_rows": 16})
        assert launch is not None
        if launch.source in {"mixture.count", "mixture.arrange", "mixture.combine"}:
            kernel, binary = build(launch, accelerator, cache)
            check_header(kernel, binary, accelerator)


def check_header(kernel: DeviceKernel, binary: bytes, accelerator: Accelerator) -> None:
    machine, flags = struct.unpack_from("<H", binary, 18)[0], struct.unpack_from("<I", binary, 48)[0]
    assert machine == ELF_MACHINES[accelerator.kind]
    assert FLAGS[accelerator.arch] in (flags & 0xFF, flags >> 8 & 0xFF)
    assert kernel.symbol.encode() + b"\0" in binary
    assert kernel.receipt.spills == 0 and 0 < kernel.receipt.registers <= accelerator.sizes["registers.thread"].value
    assert kernel.shared_bytes <= min(LIMITS[accelerator.arch].shared_bytes, accelerator.shared_bytes_per_block)


@pytest.mark.parametrize(("one", "other"), [("h100", "h200"), ("mi300x", "mi325x")])
def test_devices_of_one_architecture_share_their_code(one: str, other: str) -> None:
    first, second = ([(name, launch.key) for name, launch in launches(ACCELERATORS[target])] for target in (one, other))
    assert first == second and ACCELERATORS[one].arch == ACCELERATORS[other].arch
