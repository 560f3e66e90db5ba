"""Builds kernels that sum over ranks, at more sizes than plans use: needs Triton and MLIR, no device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tokenspeed.ir import module as modules
from tokenspeed.ir.mlir import ir
from tokenspeed.plans.device_kernels import DeviceKernel
from tokenspeed.targets.accelerator import Accelerator
from tokenspeed.targets.rates import GIB, nominal
from tokenspeed.targets.registry import ACCELERATORS
from tokenspeed.targets.triton import exchange
from tokenspeed.targets.triton.build import build
from tokenspeed.targets.triton.kernel import DeviceSetting, Launch
from tokenspeed.targets.triton.norms import add_rms_norm
from tokenspeed.targets.triton.release import VERSION

from .bundle import BuiltSum, Bundle, write

COLUMNS = (4096, 8192)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 2048)
WAYS: tuple[tuple[exchange.Way, int], ...] = (("in_words", 128), ("in_rows", 128), ("in_rows", 256))
"""With most blocks."""

WARPS = (8, 16)
MOST_WORDS = 1 << 20
"""Bytes of the largest message whose words bear numbers: it is twice as long on the way."""


def build_exchanges(target: str, ranks: int, folder: Path) -> int:
    """Build every kernel for a target and number of ranks; gives back how many there are."""
    accelerator = ACCELERATORS[target]
    binaries: dict[str, bytes] = {}

    def make(launch: Launch) -> DeviceKernel:
        kernel, binary = build(launch, accelerator)
        binaries[kernel.entry] = binary
        return kernel

    sums: list[BuiltSum] = []
    norms = []
    with modules.context():
        for columns in COLUMNS:
            summed, reader, _module = operations(columns, ranks)
            norms.append((columns, make(add_rms_norm(reader, _setting(accelerator)).steps[0].function.variants([1])[0][1])))  # pyright: ignore[reportArgumentType]
            for way, blocks in WAYS:
                exchange.BLOCKS = blocks
                setting = _setting(_reaching(accelerator, way))
                for made, norm in (
                    (exchange.all_reduce_or_nothing(summed, setting), False),
                    (exchange.add_rms_norm_or_all(reader, setting), True),
                ):
                    for rows in ROWS:
                        if rows * columns * 2 > MOST_WORDS and way == "in_words":
                            continue
                        launch = made.steps[-1].function.variants([rows])[0][1]
                        assert launch is not None
                        for warps in WARPS:
                            kernel = make(replace(launch, warps=warps))
                            sums.append(BuiltSum(way, norm, columns, rows, blocks, warps, kernel, made.exchanges[0]))
    write(folder, Bundle(target, f"triton {VERSION}", ranks, tuple(sums), tuple(norms)), binaries)
    return len(sums)


def operations(columns: int, ranks: int) -> tuple[ir.Operation, ir.Operation, ir.Module]:
    """A sum that something else reads too (so that it stays by itself), an addition with norm after one, and what keeps both."""
    x, weight = f"tensor<?x{columns}xbf16>", f"tensor<{columns}xbf16>"
    reduced = f'"ts.all_reduce"(%x) {{axis = "tp", ranks = {ranks} : i64}} : ({x}) -> {x}'
    lines = [
        f'%x = "ts.input"() {{sym = "x"}} : () -> {x}',
        f'%k = "ts.input"() {{sym = "k"}} : () -> {x}',
        f'%w = "ts.input"() {{sym = "w"}} : () -> {weight}',
        f"%s = {reduced}",
        f"%t = {reduced}",
        f'%r:2 = "ts.add_rms_norm"(%t, %k, %w) {{cast_before_weight = true, eps = 1.0e-5 : f64, one_plus_weight = false}}'
        f" : ({x}, {x}, {weight}) -> ({x}, {x})",
        "return",
    ]
    text = "\n".join(lines)
    module = modules.parse(f"module {{ func.func @step() {{\n{text}\n}} }}")
    found = [view.operation for view in modules.step_block(module).operations]
    return found[3], found[5], module


def _setting(accelerator: Accelerator) -> DeviceSetting:
    return DeviceSetting(accelerator, max(ROWS), 512, 512, 64, 64)


def _reaching(accelerator: Accelerator, way: exchange.Way) -> Accelerator:
    """With that way alone, for messages of any size."""
    sizes = {name: size for name, size in accelerator.sizes.items() if not name.startswith("exchange.")}
    name = {"in_words": "exchange.words", "in_rows": "exchange.rows"}[way]
    return replace(accelerator, sizes=sizes | {name: nominal(GIB, "B", "any")})
