"""Tiny models of many types on the device of this machine: how far their logits are from those of float64.

    python benchmarks/gpu_families.py build FOLDER [--type TYPE]... [--dtype f32]... [--target h200]    # needs no device
    python benchmarks/gpu_families.py measure FOLDER [--only TEXT]        # on the device; needs neither Triton nor transformers

Types are those of docs/accelerator-table.md, configurations those of docs/model_configurations.py. Each plan carries two golden
cases on made-up weights: the plan's own, in which every kind of layer runs once, and a long one through all layers, with chunks
of a prompt beside decoding rows and contexts of several KV blocks. Both were worked out in float64 from weights rounded to the
plan's type. Errors are the largest of all logits compared, as a share of the largest logit; what is allowed is the plan's own
tolerance (runtime/goldens.py). Prints a row for each plan, then how many held.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tokenspeed.plans.errors import TokenspeedError
from tokenspeed.plans.golden import decode_golden, encode_golden
from tokenspeed.plans.reader import Plan
from tokenspeed.plans.schema import Golden
from tokenspeed.plans.writer import write_plan
from tokenspeed.runtime.goldens import replay_goldens

DOCS = Path(__file__).parents[1] / "docs"
LONG = "golden/long.msgpack"
STEPS = (
    ((0, 0, 60), (1, 0, 4)),
    ((1, 4, 1), (0, 60, 41)),
    ((0, 101, 1), (1, 5, 1)),
    ((0, 102, 1), (2, 0, 17)),
    ((0, 103, 1), (1, 6, 1), (2, 17, 1)),
)
"""(Key of a sequence, first position, rows)."""


def build(folder: Path, types: Sequence[str], dtypes: Sequence[str], target: str) -> None:
    sys.path.insert(0, str(DOCS))
    folder.mkdir(parents=True, exist_ok=True)
    for name in types:
        for dtype in dtypes:
            path = folder / f"{name}.{dtype}.plan.bin"
            started = time.perf_counter()
            try:
                _build_one(path, name, dtype, target)
                print(f"{path.name}: {path.stat().st_size >> 10} KiB in {time.perf_counter() - started:.0f} s", flush=True)
            except TokenspeedError as error:
                print(f"{path.name}: {error}", flush=True)


def _build_one(path: Path, name: str, dtype: str, target: str) -> None:
    from accelerator_table import OPTIONS  # pyright: ignore[reportMissingImports]
    from model_table import tiny_configuration  # pyright: ignore[reportMissingImports]
    from tokenspeed.compiler import emit
    from tokenspeed.compiler.frontends.source import open_model
    from tokenspeed.compiler.goldens import Replayed, golden_of
    from tokenspeed.compiler.options import CompileOptions
    from tokenspeed.compiler.pipeline import compile_model
    from tokenspeed.ir import module as modules

    with tempfile.TemporaryDirectory() as folder, modules.context():
        source = Path(folder) / "config.json"
        source.write_text(json.dumps(tiny_configuration(name)))
        options = CompileOptions(target=target, **{**OPTIONS, "dtype": dtype})
        state = compile_model(open_model(source), options, lambda *_: None)
        assert state.manifest is not None
        constants, vocabulary = state.traced.constants, emit.vocabulary(state.traced)
        program = Replayed(state.stages, state.weights, state.manifest.sources, constants, vocabulary, dtype)
        case = golden_of(STEPS, "long", program, truncated=False)
        entries: dict[str, Any] = {key: value for key, value in state.entries.items() if not key.startswith("ir/")}
        entries[LONG] = encode_golden(case)
        goldens = (*state.manifest.goldens, Golden(name="long", entry=LONG, weights="counter"))
        write_plan(path, msgspec.structs.replace(state.manifest, goldens=goldens), entries)


def measure(folder: Path, only: str) -> bool:
    print("| plan | layers: error | all layers, long: error | allowed | seconds |\n|---|---|---|---|---|")
    held = total = 0
    for path in sorted(folder.glob("*.plan.bin")):
        name = path.name.removesuffix(".plan.bin")
        if only not in name:
            continue
        total += 1
        started = time.perf_counter()
        try:
            with Plan.open(path) as plan:
                largest = [_largest_logit(plan, golden.entry) for golden in plan.manifest.goldens]
                outcomes = replay_goldens(plan, None, lambda _phase: None)
        except Exception as error:  # a benchmark goes on to the next plan
            print(f"| {name} | {type(error).__name__}: {' '.join(str(error).split())[:300]} | | | |", flush=True)
            traceback.print_exc(limit=-4)
            continue
        cells = [f"{outcome.max_error / most:.1e}" for outcome, most in zip(outcomes, largest, strict=True)]
        allowed = f"{outcomes[-1].tolerance / largest[-1]:.1e}"
        passed = all(outcome.passed for outcome in outcomes)
        held += passed
        seconds = time.perf_counter() - started
        print(f"| {name} | {' | '.join(cells)} | {allowed}{'' if passed else ', NOT HELD'} | {seconds:.2f} |", flush=True)
    print(f"{held} of {total} plans held")
    return held == total


def _largest_logit(plan: Plan, entry: str) -> float:
    case = decode_golden(plan.entry(entry))
    return max(float(np.abs(np.frombuffer(step.expected, "<f4")).max()) for step in case.steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("build", "measure"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--type", action="append", default=[], help="may be repeated")
    parser.add_argument("--dtype", action="append", default=[], choices=("f32", "bf16", "f16"), help="may be repeated")
    parser.add_argument("--target", default="h200")
    parser.add_argument("--only", default="", help="measure plans whose names contain this")
    options = parser.parse_args()
    if options.action == "build":
        build(options.folder, options.type, options.dtype or ("f32", "bf16"), options.target)
    else:
        sys.exit(0 if measure(options.folder, options.only) else 1)


if __name__ == "__main__":
    main()
