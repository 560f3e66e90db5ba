"""Each .mlir file here: a module, a RUN line naming passes in order, and CHECK lines for what is printed after them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenspeed.compiler.mesh import ONE_RANK
from tokenspeed.ir import module
from tokenspeed.ir.mlir import ir
from tokenspeed.passes.fuse_add_norm import fuse_add_norm
from tokenspeed.passes.fuse_rope_kv_write import fuse_rope_kv_write
from tokenspeed.passes.halve_rows import halve_rows
from tokenspeed.passes.lower import lower
from tokenspeed.passes.merge_projections import merge_projections
from tokenspeed.passes.partition import partition
from tokenspeed.passes.placing.pins import Pins
from tokenspeed.passes.raise_aten import raise_aten
from tokenspeed.passes.select import Workload, select
from tokenspeed.passes.store_weights import split_packed
from tokenspeed.plans.program import Call, Program, Repeat
from tokenspeed.targets.registry import find_target

from ..mesh import ROWS_OF_NORMS, WHATEVER_CAN_BE, mesh, prices
from .matcher import check_text

FOLDER = Path(__file__).parent
MACHINE = find_target("cpu-avx2")


def _select(parsed: ir.Module) -> ir.Module:
    select(parsed, MACHINE, [Workload(4, 4, 0.9), Workload(512, 1, 0.1)], native="not in this test")
    return parsed


def _partition(parsed: ir.Module) -> ir.Module:
    partition(parsed, ONE_RANK)
    return parsed


def _over_two_ranks(parsed: ir.Module, pins: Pins) -> ir.Module:
    partition(parsed, mesh(tp=2), prices("mi300x"), pins)
    return parsed


PASSES: dict[str, Callable[[ir.Module], ir.Module]] = {
    "parse": lambda parsed: parsed,
    "raise": lambda parsed: raise_aten(parsed, "sample"),
    "partition": _partition,
    "partition-columns": lambda parsed: _over_two_ranks(parsed, WHATEVER_CAN_BE),
    "partition-rows": lambda parsed: _over_two_ranks(parsed, ROWS_OF_NORMS),
    "halve-rows": halve_rows,
    "merge-projections": merge_projections,
    "fuse-add-norm": fuse_add_norm,
    "fuse-rope-kv-write": fuse_rope_kv_write,
    "select": _select,
    "split-packed": lambda parsed: split_packed(parsed, MACHINE),
}


def printed(program: Program) -> str:
    """Buffers, views and instructions, one a line."""
    lines = [f"buffer {item.name} {item.dtype}{list(item.shape)}" for item in program.buffers]
    lines += [
        f"view {item.name} of {item.base} {list(item.shape)} at {item.offset} by {list(item.strides)}" for item in program.views
    ]
    for item in program.body:
        if isinstance(item, Repeat):
            lines.append(f"repeat {item.count} times from {item.first} by {item.stride}")
            lines += [f"  {_call(call)}" for call in item.body]
        else:
            lines.append(_call(item))
    return "\n".join(lines)


def _call(call: Call) -> str:
    return f"{call.function}({', '.join(call.inputs)}) -> {', '.join(call.outputs)} {call.attributes or ''}".rstrip()


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.mlir")), ids=lambda path: path.stem)
def test_file(path: Path) -> None:
    source = path.read_text()
    runs = re.findall(r"^// RUN: (.+)$", source, re.MULTILINE)
    assert len(runs) == 1, "one RUN line"
    passes = runs[0].split()
    with module.context():
        parsed = module.parse(source)
        for name in passes:
            if name != "lower":
                parsed = PASSES[name](parsed)
                module.verify(parsed)
        output = printed(lower(parsed, MACHINE)) if passes[-1] == "lower" else str(parsed)
        check_text(source, output)
        if passes[-1] != "lower":
            assert str(module.parse(output)) == output


def test_there_is_a_file_for_every_pass() -> None:
    run = {
        name
        for path in FOLDER.glob("*.mlir")
        for name in re.findall(r"[\w-]+", path.read_text().split("RUN: ")[1].split("\n")[0])
    }
    assert {*PASSES, "lower"} == run
