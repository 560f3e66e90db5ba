"""Fits what a target says of its steps to steps that were measured, and prints by how much the cost model then misses them.

    python benchmarks/fit_step_costs.py PLAN MEASURED.jsonl [MORE.jsonl ...] [--apart 4]

MEASURED is what gpu_contexts.py printed of a plan of the same shape. Four numbers are fitted (compiler/performance.py, plans/
perf_model.py): the share of `compute` that products of many rows reach, how far their arithmetic and traffic hide each other, the
rate of attention of prompts, and the share of it where keys are cut. They go into the target's description, as `products.share`,
`products.overlap`, `attention.compute` and `attention.cut`. Every step whose number is a multiple of --apart is left out of the
fit and shown beside the others: a check that the numbers say something of other steps too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from fitting import distance, fitted
from gpu_contexts import steps, work_of
from tokenspeed.plans.perf_model import UNITS_OF_MEASURED, StepWork
from tokenspeed.plans.reader import Plan
from tokenspeed.plans.schema import Manifest, Performance, Rate
from tokenspeed.runtime.scheduling.costs import StepCosts
from tokenspeed.targets.registry import find_target

_START = {"products": 0.8, "overlap": 1.5, "attention": 0.8e15, "cut": 0.9}
_BOUNDS = {"products": (0.1, 1.0), "overlap": (1.0, 100.0), "attention": (1e9, 1e18), "cut": (0.1, 1.0)}
_NAMES = {"products": "products.share", "overlap": "products.overlap", "attention": "attention.compute", "cut": "attention.cut"}


@dataclass(frozen=True)
class Measured:
    step: str
    work: StepWork
    seconds: float


def read(paths: Sequence[Path]) -> list[Measured]:
    """Steps of the reports, which are named as `gpu_contexts.steps` names them."""
    known, found = steps(), list[Measured]()
    for path in paths:
        for line in map(json.loads, path.read_text().splitlines()):
            if "ms" in line:
                found.append(Measured(line["step"], work_of(*known[line["step"]]), line["ms"] / 1000))
    return found


def with_figures(manifest: Manifest, figures: Mapping[str, float]) -> StepCosts:
    """The plan on a machine of these figures, of which those in _START may be among them."""
    performance = manifest.performance
    rates = {
        name: Rate(value=figures[name], unit=unit, source="fit", basis="measured")
        for name, unit in UNITS_OF_MEASURED.items()
        if name in figures
    }
    changed = msgspec.structs.replace(
        _with_cut(performance, manifest.target.name, figures["cut"]), rates=performance.rates | rates
    )
    return StepCosts.from_manifest(msgspec.structs.replace(manifest, performance=changed))


def _with_cut(performance: Performance, target: str, cut: float) -> Performance:
    """Shares of attention as this version compiles them for the target, with another rate where keys are cut."""
    figure = find_target(target).rates.get("attention.cut")
    change = cut / (1.0 if figure is None else figure.value)
    whole = max(row.attention_rows for row in performance.step_costs)
    rows = list(performance.step_costs)
    for place, row in enumerate(rows):
        if row.attention_rows < whole:
            share, at_once = row.attention_share * change, row.attention_rows / change
            rows[place] = msgspec.structs.replace(row, attention_share=share, attention_rows=at_once)
    return msgspec.structs.replace(performance, step_costs=tuple(rows))


def fit(manifest: Manifest, measured: Sequence[Measured]) -> dict[str, float]:
    def far(figures: Mapping[str, float]) -> float:
        costs = with_figures(manifest, figures)
        return distance((costs.step_seconds(item.work), item.seconds) for item in measured)

    return fitted(_START, _BOUNDS, far)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("measured", type=Path, nargs="+")
    parser.add_argument("--apart", type=int, default=4, help="one of so many steps is left out of the fit; 0: none")
    options = parser.parse_args()
    with Plan.open(options.plan) as plan:
        manifest = plan.manifest
    measured = read(options.measured)
    apart = {number for number in range(len(measured)) if options.apart and number % options.apart == 0}
    figures = fit(manifest, [item for number, item in enumerate(measured) if number not in apart])
    now, after = StepCosts.from_manifest(manifest), with_figures(manifest, figures)
    print("| step | measured, ms | by the plan | fitted | left out |\n|---|---|---|---|---|")
    errors: dict[bool, list[float]] = {True: [], False: []}
    for number, item in enumerate(measured):
        predicted = [costs.step_seconds(item.work) for costs in (now, after)]
        shown = " | ".join(f"{seconds * 1e3:.2f} ({seconds / item.seconds - 1:+.1%})" for seconds in predicted)
        errors[number in apart].append(abs(predicted[1] / item.seconds - 1))
        print(f"| {item.step} | {item.seconds * 1e3:.2f} | {shown} | {'x' if number in apart else ''} |")
    for left_out, found in errors.items():
        if found:
            kind = "left out" if left_out else "fitted"
            print(f"{len(found)} steps {kind}: {sum(found) / len(found):.1%} off in the mean, {max(found):.1%} at most")
    print({_NAMES[name]: float(f"{value:.4g}") for name, value in figures.items()})


if __name__ == "__main__":
    main()
