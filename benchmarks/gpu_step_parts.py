"""Where the time of a decode step goes on this machine's device, by function.

    python benchmarks/gpu_step_parts.py PLAN... [--point BATCH:CONTEXT]...

Made-up weights. A step's launches are captured anew by parts, a part being those of one function at one place of all layers: each
part alone, and the step without it. Kernels begin while those ahead of them still run, so that parts alone do not add up to the
step; what the step gains without a part is what the part costs in it. Prints JSON lines: microseconds of all launches of a part,
and how many they are.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tokenspeed.plans.reader import Plan
from tokenspeed.runtime.benchmark.fixed_steps import StepMaker, admit_greedy
from tokenspeed.runtime.device.arrays import DeviceArray
from tokenspeed.runtime.device.device import Device, Launch
from tokenspeed.runtime.device.graphs import CapturedBuckets
from tokenspeed.runtime.device.kernels import DeviceKernels
from tokenspeed.runtime.executor import load_executor

ROUNDS = 12


class Watched:
    """Remembers what launches are of, and which a captured bucket consists of."""

    def __init__(self) -> None:
        self.parts: dict[Launch, str] = {}
        self.buckets: dict[int, tuple[Launch, ...]] = {}
        self.device: Device | None = None
        self._prepare, self._captured = DeviceKernels.prepare, CapturedBuckets.captured

    def watch(self) -> None:
        """From now on, of all plans that are loaded."""
        watched = self

        def prepare(
            self: DeviceKernels,
            function: str,
            symbols: Mapping[str, int],
            operands: Sequence[DeviceArray],
            label: str,
            stream: int | None = None,
        ) -> tuple[Launch, ...]:
            made = watched._prepare(self, function, symbols, operands, label, stream)
            stem = function.removeprefix("device.").split(".")[0]
            place = re.sub(r"\.\d+\.", ".", label).removeprefix("model.").removeprefix("layers.")
            watched.parts.update(dict.fromkeys(made, f"{place}: {stem}"))
            return made

        def captured(self: CapturedBuckets, launches: tuple[Launch, ...], loose: Any, where: str) -> tuple[Launch, ...]:
            if where.startswith("program step"):
                watched.buckets[int(re.findall(r"bucket of (\d+) rows", where)[0])] = launches
            watched.device = self._device  # pyright: ignore[reportPrivateUsage]
            return watched._captured(self, launches, loose, where)

        DeviceKernels.prepare, CapturedBuckets.captured = prepare, captured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plans", nargs="+", type=Path)
    parser.add_argument("--point", action="append", default=[], help="BATCH:CONTEXT")
    by_profiler = "kernels of a step in order too, or alone, by torch's profiler"
    parser.add_argument("--timeline", nargs="?", choices=("too", "alone"), const="too", help=by_profiler)
    options = parser.parse_args()
    for path in options.plans:
        watched = Watched()
        watched.watch()
        with Plan.open(path) as plan:
            executor = load_executor(plan, "dummy", None, lambda _phase: None)
            admit_greedy(executor, plan.manifest.schedule.max_sequences)
            for point in options.point or ["1:2048"]:
                batch, context = map(int, point.split(":"))
                for step in StepMaker(plan.manifest).decode(batch, context, 3):
                    executor.run(step)  # its inputs stay
                if options.timeline != "alone":
                    report(path.name, point, watched, min(rows for rows in watched.buckets if rows >= batch))
                if options.timeline:
                    *_, step = StepMaker(plan.manifest).decode(batch, context, 3)
                    timeline(path.name, point, partial(executor.run, step))
            executor.close()


def report(name: str, point: str, watched: Watched, rows: int) -> None:
    launches, device = watched.buckets[rows], watched.device
    assert device is not None
    of_part: dict[str, list[Launch]] = {}
    for launch in launches:
        of_part.setdefault(watched.parts.get(launch, "of a library"), []).append(launch)
    with device:
        whole = seconds(device, launches)
        say({"plan": name, "point": point, "step_us": round(whole * 1e6, 1), "launches": len(launches)})
        for part, some in of_part.items():
            if len(some) == 1:
                continue  # of no layer: without the tokens, or the rows of their table, others would read anywhere
            alone = seconds(device, some)
            without = seconds(device, [launch for launch in launches if watched.parts.get(launch, "of a library") != part])
            figures = {"count": len(some), "alone_us": round(alone * 1e6, 1), "in_step_us": round((whole - without) * 1e6, 1)}
            say({"plan": name, "point": point, "part": part, **figures, "alone_each_us": round(alone * 1e6 / len(some), 2)})


def timeline(name: str, point: str, run: Callable[[], object]) -> None:
    """What torch's profiler sees of one step, by kernel and grid: how long it runs, and by how much its end is later than the
    latest end of those ahead of it."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        found = [event for event in json.loads(path.read_text())["traceEvents"] if event.get("cat") == "kernel"]
    of_kernel: dict[str, list[tuple[float, float]]] = {}
    latest = 0.0
    for event in sorted(found, key=lambda event: event["ts"]):
        end = event["ts"] + event["dur"]
        key = f"{event['name']} {event['args'].get('grid')}"
        of_kernel.setdefault(key, []).append((event["dur"], end - (latest or event["ts"])))
        latest = max(latest, end)
    for key, times in of_kernel.items():
        lasts, adds = (round(sum(column) / len(times), 2) for column in zip(*times, strict=True))
        say({"plan": name, "point": point, "kernel": key, "count": len(times), "lasts_us": lasts, "adds_us": adds})


def seconds(device: Device, launches: Sequence[Launch]) -> float:
    """The best of several replays of a graph of them; the first warms up."""
    graph, best = device.capture(tuple(launches), "a part of a step"), float("inf")
    start, end = (device.create_event(timed=True) for _ in range(2))
    for turn in range(ROUNDS + 1):
        device.record(start)
        graph()
        device.record(end)
        device.synchronise()
        if turn:
            best = min(best, device.seconds_between(start, end))
    for event in (start, end):
        device.destroy_event(event)
    return best


def say(what: dict[str, object]) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    sys.exit(main())
