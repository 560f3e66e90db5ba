"""Generates accelerator-table.md: every causal LM type that compiles, as a tiny model, for every accelerator.

    python docs/accelerator_table.py --jobs 2                               # all types, all architectures, up to machine code
    python docs/accelerator_table.py --code --only bloom --target h200      # these cells again, machine code and all

Each type is traced, raised and proved once, in a process of its own; then for each target kernels are chosen, and instructions
and launches of every bucket made. With --code they are built, and the plan is written, read and checked. Nothing runs: there is
no device. Of targets that share an architecture one stands for both: their launches are the same.
"""

from __future__ import annotations

import argparse
import datetime
import json
import resource
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_table import (
    MEMORY,
    TABLE,
    causal_types,
    one_line,
    only_results_on_stdout,
    read_table,
    shortened,
    tiny_configuration,
)

if TYPE_CHECKING:
    from tokenspeed.compiler.pipeline import Compilation

PAGE = Path(__file__).parent / "accelerator-table.md"
TARGETS = ("a100", "h200", "b200", "mi300x", "mi355x")
TITLES = ("a100", "h100, h200", "b200", "mi300x, mi325x", "mi355x")
SECONDS = 1200
COMPILES, LOWERED = "yes", "lowered"
OPTIONS: dict[str, Any] = {
    "dtype": "bf16",
    "max_context": 128,
    "max_sequences": 4,
    "prefill_chunk": 64,
    "quantize": "none",
    "memory": 1 << 30,
}

Row = dict[str, str]
"""Of each target, "yes", "lowered" or why not; under "torch", the operations that torch runs on the device."""


def compile_one(model_type: str, targets: Sequence[str], code: bool) -> Row:
    """A tiny model of the type for each target, with machine code or up to it."""
    from tokenspeed.compiler.frontends.source import open_model
    from tokenspeed.compiler.options import CompileOptions
    from tokenspeed.compiler.pipeline import compile_model
    from tokenspeed.ir import module as modules
    from tokenspeed.plans.errors import TokenspeedError

    row: Row = {}
    with tempfile.TemporaryDirectory() as folder, modules.context():
        source = Path(folder) / "config.json"
        source.write_text(json.dumps(tiny_configuration(model_type)))
        try:
            options = CompileOptions(target=targets[0], **OPTIONS)
            common = compile_model(open_model(source), options, lambda *_: None, "fuse")
        except TokenspeedError as error:
            return dict.fromkeys(targets, _words(error))
        for target in targets:
            try:
                state = for_target(common, target, code)
                row["torch"] = _torch(state)
                if code:
                    _check_plan(state, Path(folder) / "plan.bin")
                row[target] = COMPILES if code else LOWERED
            except TokenspeedError as error:
                row[target] = _words(error)
            except Exception as error:  # a fault of the compiler, or of Triton
                row[target] = f"the compiler failed: {one_line(error)}"
    return row


def for_target(state: Compilation, target: str, code: bool) -> Compilation:
    """A model that is fused, compiled for another accelerator: to its end, or without `code` up to it. `state` stays as it is."""
    from tokenspeed.compiler.device_section import every_launch
    from tokenspeed.compiler.memory import BLOCK_TOKENS
    from tokenspeed.compiler.pipeline import PHASES
    from tokenspeed.ir import module as modules
    from tokenspeed.ir.mlir import ir
    from tokenspeed.passes.device_setting import device_setting
    from tokenspeed.passes.lower_device import DeviceCalls
    from tokenspeed.targets.accelerator import Accelerator
    from tokenspeed.targets.registry import find_target

    machine = find_target(target)
    assert isinstance(machine, Accelerator)
    device = DeviceCalls(device_setting(machine, state.limits, BLOCK_TOKENS, state.max_context))
    options = replace(state.options, target=target)
    copy = replace(state, machine=machine, device=device, options=options, module=ir.Module.parse(str(state.module)), entries={})
    names = [name for name, _ in PHASES]
    for name, phase in PHASES[names.index("fuse") + 1 : len(PHASES) if code else names.index("emit")]:
        phase(copy)
        modules.verify(copy.module)
        copy.ir_texts[name] = ""
    assert copy.step is not None and copy.sample is not None
    assert any(every_launch(device.templates, (copy.step, copy.sample)))
    return copy


def _torch(state: Compilation) -> str:
    """The operations that the step program runs through torch."""
    from tokenspeed.plans.device_library import library_functions

    assert state.step is not None
    return shortened(", ".join(name.removeprefix("aten.") for name in library_functions([state.step])))


def _check_plan(state: Compilation, path: Path) -> None:
    """Write the plan, read and check all of it."""
    from tokenspeed.plans.reader import Plan
    from tokenspeed.plans.writer import write_plan

    assert state.manifest is not None
    write_plan(path, state.manifest, state.entries)
    with Plan.open(path) as plan:
        plan.verify_all()


def _words(error: Any) -> str:
    return shortened("; ".join(part for part in (error.what, error.where, error.got) if part))


def _in_a_process(model_type: str, targets: Sequence[str], code: bool) -> Row:
    command = [sys.executable, __file__, "--in-this-process", "--only", model_type, *(["--code"] if code else [])]
    command += [argument for target in targets for argument in ("--target", target)]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL, check=False)
    except subprocess.TimeoutExpired:
        return dict.fromkeys(targets, f"compiling takes longer than {SECONDS} s")
    try:
        return json.loads(ended.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        last = (ended.stderr.strip().splitlines() or [f"ended with status {ended.returncode}"])[-1]
        return dict.fromkeys(targets, shortened(f"the compiler failed: {last}"))


def read_page(text: str) -> dict[str, Row]:
    """The rows of a page, by model type."""
    rows: dict[str, Row] = {}
    for line in text.splitlines():
        cells = [cell.strip().replace("\0", "|") for cell in line.replace("\\|", "\0").strip("|").split("|")]
        if len(cells) == len(TARGETS) + 2 and cells[0].startswith("`"):
            rows[cells[0].strip("`")] = dict(zip((*TARGETS, "torch"), cells[1:], strict=True))
    return rows


def write_page(rows: dict[str, Row], version: str, date: str) -> str:
    """The page: totals, then a row for each type in order of name."""
    compiles = {target: sum(row.get(target) in {COMPILES, LOWERED} for row in rows.values()) for target in TARGETS}
    counts = ", ".join(f"{title}: {compiles[target]}" for title, target in zip(TITLES, TARGETS, strict=True))
    by_torch = sum(bool(row.get("torch")) for row in rows.values())
    lines = [
        "# Accelerator table",
        "",
        f"Every causal LM type of transformers {version} that compiles ([model table](model-table.md)), as of {date}:",
        "a tiny model of it, in bfloat16, for every accelerator. Written by `python docs/accelerator_table.py`, not by hand.",
        "What ran on a device: [performance.md](performance.md).",
        "",
        f"Of {len(rows)} types compile, {counts}.",
        "*yes*: machine code and all; *lowered*: up to machine code, kernels chosen, instructions and launches made; an empty",
        "cell was not tried. Where an operation has no kernel, torch runs it on the device, outside of captured graphs:",
        f"{by_torch} types have some (last column).",
        "",
        f"| type | {' | '.join(TITLES)} | through torch |",
        f"| --- |{' --- |' * (len(TARGETS) + 1)}",
    ]
    for name, row in sorted(rows.items()):
        cells = [row.get(column, "").replace("|", "\\|") for column in (*TARGETS, "torch")]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _run_in_this_process(model_type: str, targets: Sequence[str], code: bool) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    with only_results_on_stdout():
        row = compile_one(model_type, targets, code)
    print(json.dumps(row))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Compile a tiny model of every causal LM type for every accelerator.")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--only", action="append", default=[], metavar="TYPE", help="this type only; may be repeated")
    parser.add_argument("--target", action="append", default=[], choices=TARGETS, help="this target only; may be repeated")
    parser.add_argument("--code", action="store_true", help="build machine code too")
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    targets = options.target or TARGETS
    if options.in_this_process:
        _run_in_this_process(options.only[0], targets, options.code)
        return
    import transformers

    known = causal_types()
    types = [name for name, (status, _) in read_table(TABLE.read_text()).items() if status != "refused" and name in known]
    wanted = [name for name in types if not options.only or name in options.only]
    rows = {name: row for name, row in (read_page(PAGE.read_text()) if PAGE.exists() else {}).items() if name in types}
    with ThreadPoolExecutor(options.jobs) as pool:
        found = pool.map(lambda name: _in_a_process(name, targets, options.code), wanted)
        for name, row in zip(wanted, found, strict=True):
            print(f"{name}: {row}", flush=True)
            rows[name] = {**rows.get(name, {}), **row}
            date = datetime.datetime.now(datetime.UTC).date().isoformat()
            PAGE.write_text(write_page(rows, transformers.__version__, date))


if __name__ == "__main__":
    main()
