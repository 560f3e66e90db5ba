"""Planned against resident memory of an engine: after loading, and after the largest steps there can be. Prints both.

    python benchmarks/memory_check.py PLAN [--weights DIR|FILE|dummy] [--threads 2] [--json]

Goal: within 1 % of the total, and within 10 % of what is neither weights nor KV. Resident pages of the plan's and the
checkpoint's own files are page cache that the system takes back when it needs it; they are shown apart and not counted.
Exit code 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table
from tokenspeed.plans.errors import TokenspeedError
from tokenspeed.plans.reader import Plan
from tokenspeed.plans.schema import MemoryPlan
from tokenspeed.plans.units import format_bytes
from tokenspeed.runtime.benchmark.environment import Environment, environment

TOTAL_GOAL, REST_GOAL = 0.01, 0.10


class Resident(msgspec.Struct, frozen=True):
    """Bytes of this process in memory; `cache` are pages of the plan's and the checkpoint's files among them."""

    when: str
    resident: int
    cache: int

    @property
    def counted(self) -> int:
        return self.resident - self.cache


class Check(msgspec.Struct, frozen=True):
    """Errors are (measured - planned) / planned; `rest` is what is neither weights nor KV."""

    when: str
    measured: int
    page_cache: int
    total_error: float
    measured_rest: int
    rest_error: float


class MemoryReport(msgspec.Struct, frozen=True):
    environment: Environment
    planned: MemoryPlan
    planned_total: int
    planned_rest: int
    baseline: int
    scratch: int
    checks: list[Check]
    met: bool


@dataclass(frozen=True)
class Options:
    plan: Path
    weights: str | None
    threads: int | None


def resident(when: str, files: list[Path]) -> Resident:
    """From /proc/self/smaps: Rss of every mapping, and of those of `files`."""
    names = {str(path.resolve()) for path in files}
    total = cache = 0
    mapped = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split(maxsplit=5)
        if line.startswith("Rss:"):
            size = int(head[1]) * 1024
            total += size
            cache += size if mapped else 0
        elif "-" in head[0] and not head[0].endswith(":"):  # the first line of a mapping: "address-address ..."
            mapped = len(head) == 6 and head[5] in names
    return Resident(when, total, cache)


def measure(options: Options) -> MemoryReport:
    """Runs in this process; nothing large may have been allocated before."""
    surroundings = environment()
    files = [options.plan, *_weight_files(options.weights)]
    with Plan.open(options.plan) as plan:
        from tokenspeed.runtime.benchmark.fixed_steps import StepMaker, admit_greedy
        from tokenspeed.runtime.executor import load_executor

        before = resident("imports", files)
        executor = load_executor(plan, options.weights, options.threads, lambda _phase: None)
        seen = [resident("after loading", files)]
        maker = StepMaker(plan.manifest)
        admit_greedy(executor, plan.manifest.schedule.max_sequences)
        steps: dict[str, Callable[[], object]] = {
            "after one decode step": lambda: [executor.run(step) for step in maker.decode(1, 16, 1)],
            "after the largest step": lambda: executor.run(maker.largest()),
            "after a chunk at the longest context": lambda: executor.run(maker.longest()),
            "after all of them once more": lambda: (executor.run(maker.largest()), executor.run(maker.longest())),
        }
        for when, run in steps.items():
            run()
            seen.append(resident(when, files))
        scratch = executor.scratch_bytes
        executor.close()
    planned = plan.manifest.memory
    checks = [_check(planned, item) for item in seen]
    met = all(abs(item.total_error) <= TOTAL_GOAL and abs(item.rest_error) <= REST_GOAL for item in checks[-1:])
    return MemoryReport(surroundings, planned, planned.total, _rest(planned), before.counted, scratch, checks, met)


def _check(planned: MemoryPlan, seen: Resident) -> Check:
    rest, planned_rest = seen.counted - planned.weights - planned.kv, _rest(planned)
    total_error = (seen.counted - planned.total) / planned.total
    return Check(seen.when, seen.counted, seen.cache, total_error, rest, (rest - planned_rest) / planned_rest)


def _rest(planned: MemoryPlan) -> int:
    return planned.total - planned.weights - planned.kv


def _weight_files(weights: str | None) -> list[Path]:
    path = Path(weights) if weights else None
    if path is None or not path.exists():
        return []
    return sorted(path.iterdir()) if path.is_dir() else [path]


def show(report: MemoryReport) -> None:
    console = Console(width=None if sys.stdout.isatty() else 140)
    planned = report.planned
    parts = [(name, getattr(planned, name)) for name in planned.__struct_fields__ if getattr(planned, name)]
    console.print(f"planned {format_bytes(planned.total)}: " + ", ".join(f"{name} {format_bytes(size)}" for name, size in parts))
    console.print(
        f"interpreter and libraries before loading {format_bytes(report.baseline)} (planned as overhead), scratch kept by "
        f"functions {format_bytes(report.scratch)} (planned as workspace)"
    )
    table = Table("", "resident", "of total", "neither weights nor KV", "of it", "page cache, not counted")
    for item in report.checks:
        rest = format_bytes(abs(item.measured_rest))
        shares = (f"{item.total_error:+.2%}", rest, f"{item.rest_error:+.1%}")
        table.add_row(item.when, format_bytes(item.measured), *shares, format_bytes(item.page_cache))
    console.print(table)
    console.print(f"goals (within {TOTAL_GOAL:.0%} and {REST_GOAL:.0%}) {'met' if report.met else 'MISSED'}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--weights")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        report = measure(Options(options.plan, options.weights, options.threads))
    except TokenspeedError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if options.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(report), indent=1).decode() + "\n")
    else:
        show(report)
    return 0 if report.met else 1


if __name__ == "__main__":
    sys.exit(main())
