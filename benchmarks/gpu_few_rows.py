"""What one row, and a few, of Qwen3 30B A3B wait for most: its experts, and layers with the norm ahead of them, by tiles.

    python benchmarks/gpu_few_rows.py build FOLDER [--target h200]     # with Triton, no device
    python benchmarks/gpu_few_rows.py measure FOLDER                   # on the device, without Triton

Experts: both products with pairs of row and expert by themselves, and beside them in order (five kernels). Each turn has its own
experts, so that weights come from memory. Layers: the norm in every program of the layer, and beside it as a kernel of its own.
Numbers are compared with float64 first. Prints JSON lines: microseconds, share of what reading the weights takes at the bandwidth
of the same run, the largest error as a share of the largest result.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from gpu import rates
from gpu.bundle import BuiltCase, Bundle, read, write
from gpu.cases import Case
from gpu.experts_case import experts_case
from gpu.on_device import Bench
from torch import Tensor

if TYPE_CHECKING:
    from tokenspeed.ir.mlir import ir
    from tokenspeed.targets.triton.kernel import DeviceOperation, DeviceSetting

EXPERTS, TOP, HIDDEN, INNER = 128, 8, 2048, 768
TURNS, ROUNDS = 12, 8
FIRST = (
    *((8, 1024, 4, 2), (8, 1024, 4, 3), (8, 512, 4, 3), (8, 512, 2, 3), (8, 2048, 8, 2), (8, 1024, 8, 3)),
    *((16, 512, 4, 2), (16, 512, 4, 3), (16, 512, 8, 3), (16, 256, 4, 4), (16, 1024, 8, 2), (4, 1024, 2, 3), (4, 2048, 4, 2)),
)
SECOND = (
    *((4, 256, 4, 2), (4, 256, 4, 3), (2, 256, 4, 2), (2, 256, 4, 3), (2, 256, 2, 3), (1, 256, 2, 3), (4, 128, 4, 3)),
    *((4, 256, 8, 2), (4, 256, 8, 3), (8, 256, 8, 2), (8, 128, 4, 3), (8, 128, 8, 3), (2, 128, 2, 3)),
    *((2, 1024, 4, 2), (4, 1024, 8, 2)),
)
"""Columns, inner, warps, stages."""
LAYERS = {"qkv of 30B A3B": (5120, 2048), "router of 30B A3B": (128, 2048), "qkv of both 8B": (6144, 4096)}
NORMED = (
    *((8, 1024, 4, 2), (8, 1024, 4, 3), (4, 1024, 4, 2), (4, 2048, 4, 2), (8, 512, 4, 3), (8, 1024, 8, 2), (16, 512, 4, 2)),
    *((16, 1024, 8, 2), (2, 2048, 4, 2), (2, 2048, 2, 2), (1, 2048, 4, 2), (2, 1024, 4, 2)),
)


@dataclass(frozen=True)
class Made:
    """A case and the ways it is built."""

    case: Case
    ways: dict[str, Callable[[ir.Operation, DeviceSetting], DeviceOperation] | None]

    def results(self, operands: list[Tensor]) -> list[Tensor]:
        """Those that are compared."""
        return operands[5:6] if self.case.outputs == 1 else operands[4:6]


def cases() -> Iterator[Made]:
    """What is built; ways need Triton's side, so that they are made when they are called."""
    for rows in (1, 2, 4):
        ways: dict[str, Callable[[ir.Operation, DeviceSetting], DeviceOperation] | None] = {"in order": _in_order(rows)}
        ways |= {f"first {tiles}": partial(_pairs, first=tiles, second=SECOND[0]) for tiles in FIRST}
        ways |= {f"second {tiles}": partial(_pairs, first=FIRST[0], second=tiles) for tiles in SECOND[1:]}
        yield Made(experts_case(rows, EXPERTS, TOP, HIDDEN, INNER), ways)
    for name, (columns, inner) in LAYERS.items():
        ways = {"apart": _apart} | {f"{tiles}": partial(_normed, tiles=tiles) for tiles in NORMED if tiles[1] <= inner}
        yield Made(_normed_case(name, columns, inner), ways)


def _in_order(rows: int) -> Callable[[ir.Operation, DeviceSetting], DeviceOperation]:
    def template(operation: ir.Operation, setting: DeviceSetting) -> DeviceOperation:
        from tokenspeed.targets.triton.measured_tiles import find_experts
        from tokenspeed.targets.triton.mixture import moe_experts

        row = find_experts(setting.accelerator.arch, "bf16", rows, (EXPERTS, TOP, HIDDEN, INNER))
        assert row is not None, "the target has no measured tiles of these experts"
        return moe_experts(operation, setting, lambda _rows: row.tiles)

    return template


def _pairs(operation: ir.Operation, setting: DeviceSetting, first: tuple[int, ...], second: tuple[int, ...]) -> DeviceOperation:
    from tokenspeed.targets.triton.few_experts import PairTiles, few_pairs
    from tokenspeed.targets.triton.kernel import DeviceOperation

    steps, room = few_pairs(operation, setting, (0, 1, 2, 3, 4), 5, None, (PairTiles(*first), PairTiles(*second)))
    return DeviceOperation(steps, room)


def _apart(operation: ir.Operation, setting: DeviceSetting) -> DeviceOperation:
    from tokenspeed.ir import module as modules
    from tokenspeed.targets.triton.kernel import DeviceOperation
    from tokenspeed.targets.triton.linear import linear
    from tokenspeed.targets.triton.norms import add_rms_norm

    norm = add_rms_norm(modules.made_by(operation.operands[0]), setting).steps[0]
    return DeviceOperation((replace(norm, inputs=(3, 4, 5), outputs=(6, 0)), *linear(operation, setting).steps))


def _normed(operation: ir.Operation, setting: DeviceSetting, tiles: tuple[int, ...]) -> DeviceOperation:
    from tokenspeed.ir import module as modules
    from tokenspeed.targets.triton.kernel import DeviceOperation
    from tokenspeed.targets.triton.measured_tiles import LinearTiles
    from tokenspeed.targets.triton.normed_linear import both

    columns, inner, warps, stages = tiles
    chosen = LinearTiles(way="one_row", rows=1, columns=columns, inner=inner, warps=warps, stages=stages)
    return DeviceOperation((both(modules.made_by(operation.operands[0]), operation, chosen, setting),))


def _normed_case(name: str, columns: int, inner: int) -> Case:
    x, weight, out = f"tensor<?x{inner}xbf16>", f"tensor<{columns}x{inner}xbf16>", f"tensor<?x{columns}xbf16>"
    factor = f"tensor<{inner}xbf16>"
    style = "{cast_before_weight = true, eps = 1.0e-5 : f64, one_plus_weight = false}"
    segments = "{operandSegmentSizes = array<i32: 1, 1, 0>}"
    lines = [
        f'%t, %n = "ts.add_rms_norm"(%a0, %a1, %a2) {style} : ({x}, {x}, {factor}) -> ({x}, {x})',
        f'%r = "ts.linear"(%n, %a3) {segments} : ({x}, {weight}) -> {out}',
    ]

    def operands() -> list[Tensor]:
        """The norm's operands, the weight; the sum, the layer's result, and room for what is normalised."""
        given = [torch.randn(*shape).bfloat16() for shape in ((1, inner), (1, inner), (inner,), (columns, inner))]
        given[3] *= 0.02
        return [*given, *(torch.zeros(1, size).bfloat16() for size in (inner, columns, inner))]

    def reference(given: list[Tensor]) -> list[Tensor]:
        total = (given[0] + given[1]).double()
        normed = (total * (total.square().mean() + 1e-5).rsqrt()).bfloat16().double() * given[2].double()
        return [total, normed.bfloat16().double() @ given[3].double().T]

    # of the layer's call: (normed, weight), out, then the norm's operands and results
    places = {0: 6, 1: 3, 2: 5, 3: 0, 4: 1, 5: 2, 6: 4}
    types = (x, x, factor, weight)
    moved = 2.0 * columns * inner
    return Case(f"norm and {name}", 1, 1, types, "\n".join(lines), operands, 2, (3,), reference, None, moved, 0.0, places)


def build(target: str, folder: Path) -> None:
    from gpu.building import build_case, setting_of
    from gpu.tuning_build import Builder
    from tokenspeed.plans.errors import ModelError
    from tokenspeed.targets.registry import ACCELERATORS
    from tokenspeed.targets.triton.release import VERSION

    builder, built = Builder(ACCELERATORS[target]), []
    for made in cases():
        for way, template in made.ways.items():
            try:
                found = build_case(made.case, setting_of(builder.accelerator), builder.built, template)
                built.append(BuiltCase(f"{made.case.name}: {way}", found.steps, found.intermediates))
            except ModelError as error:
                print(f"{made.case.name}: {way}: {error.what}", flush=True)
    write(folder, Bundle(target, f"triton {VERSION}", tuple(built)), builder.binaries)
    print(f"{len(built)} ways in {folder}")


def measure(folder: Path) -> None:
    torch.manual_seed(0)
    torch.set_default_device("cuda")
    bench = Bench(folder)
    built, bandwidth = {item.case: item for item in read(folder).cases}, rates.bandwidth()
    say({"device": bench.name, "bandwidth": bandwidth})
    for made in cases():
        first = made.case.operands()
        turns = [first, *_other_turns(made.case, first)]
        wanted = made.case.reference(first)
        replays: dict[str, Callable[[], float]] = {}
        errors: dict[str, float] = {}
        for way in made.ways:
            item = built.get(f"{made.case.name}: {way}")
            if item is None:
                continue
            launches = [
                bench.launches(item, operands, {"rows": made.case.rows, "logit_rows": made.case.rows}) for operands in turns
            ]
            for result in made.results(first):
                result.fill_(torch.nan)
            bench.spoil()
            bench.once(launches[0])
            results = made.results(first)
            errors[way] = max(rates.largest_error(got, right) for got, right in zip(results, wanted, strict=True))
            replays[way] = bench.replays(launches)
        bound = made.case.bytes / bandwidth
        for way, seconds in sorted(_best(replays).items(), key=lambda item: item[1]):
            us, share = round(seconds * 1e6, 2), round(100 * bound / seconds)
            say({"case": made.case.name, "way": way, "us": us, "share": share, "error": round(errors[way], 5)})
        bench.forget()


def _other_turns(case: Case, first: list[Tensor]) -> Iterator[list[Tensor]]:
    """Of experts: others of the same. Of layers: weights of their own."""
    for _ in range(TURNS - 1):
        if "experts" in case.name:
            indices = torch.rand(case.rows, EXPERTS).argsort(1)[:, :TOP].int().contiguous()
            yield [indices if at == 1 else item for at, item in enumerate(first)]
        else:
            yield case.again(first)


def _best(replays: dict[str, Callable[[], float]]) -> dict[str, float]:
    """Of rounds in which all take turns; the first warms up."""
    best = dict.fromkeys(replays, float("inf"))
    for turn in range(ROUNDS + 1):
        for way in replays if turn % 2 else reversed(list(replays)):
            seconds = replays[way]()
            if turn:
                best[way] = min(best[way], seconds)
    return best


def say(what: dict[str, object]) -> None:
    print(json.dumps(what), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("build", "measure"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target", default="h200")
    options = parser.parse_args(arguments)
    if options.action == "build":
        build(options.target, options.folder)
    else:
        measure(options.folder)


if __name__ == "__main__":
    sys.exit(main())
