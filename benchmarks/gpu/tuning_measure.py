"""Measures candidates on the device that torch uses: numbers first, then times, candidates in turns."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec
import torch
from tokenspeed.runtime.device.device import Launch
from tokenspeed.targets.triton.measured_tiles import Receipt
from torch import Tensor

from .cases import Case
from .on_device import Bench, library_seconds
from .rates import bandwidth, largest_error, rate
from .tuning_bundle import RESULTS, Candidate, MeasuredCase, Measurement, Measurements, Sizes, read_candidates
from .tuning_cases import TuningCase

COLD_BYTES = 160_000_000
"""Several times what a device's cache holds; turns take as many copies of what is read from memory."""

MOST_TURNS = 200
ROUNDS = 6
FINAL_ROUNDS, FINALISTS = 10, 4
LARGEST_ERROR = 0.02
"""As a share of the largest result: a few steps of bfloat16."""

Say = Callable[[str], None]


def measure_candidates(folder: Path, cases: Sequence[TuningCase], out: Path | None, say: Say) -> Measurements:
    """Measure what a folder holds of these cases, and write it."""
    torch.manual_seed(0)
    bundle = read_candidates(folder)
    torch.set_default_device("cuda")
    bench = Bench(folder)
    receipt = Receipt(
        device=bench.name,
        driver=_driver(),
        torch=str(torch.__version__),
        date=time.strftime("%Y-%m-%d"),
        bandwidth=bandwidth(),
        rate=rate(),
    )
    say(f"{receipt.device}, driver {receipt.driver}: {receipt.bandwidth / 1e12:.2f} TB/s, {receipt.rate / 1e12:.0f} TFLOP/s")
    found: list[MeasuredCase] = []
    target = out or folder / RESULTS
    made = Measurements(bundle.architecture, bundle.triton, receipt, found)
    for tuned in cases:
        candidates = bundle.of_case.get(tuned.case.name, [])
        if not candidates:
            continue
        try:
            found.append(_measured(bench, tuned.case, candidates, receipt))
        except torch.OutOfMemoryError:
            say(f"{tuned.case.name}: no room on this device")
            continue
        target.write_bytes(msgspec.json.encode(made))  # what is there so far outlives an end
        say(_line(found[-1]))
    return made


def _measured(bench: Bench, case: Case, candidates: Sequence[Candidate], receipt: Receipt) -> MeasuredCase:
    first = case.operands()
    copies = _copies(case, first)
    wanted = case.reference(first)
    timed: list[tuple[Sizes, float, Callable[[], float]]] = []
    wrong: list[Measurement] = []
    for candidate in candidates:
        turns = [_launches(bench, case, candidate, operands) for operands in copies]
        for result in first[-case.outputs :]:
            result.fill_(torch.nan)
        bench.spoil()
        bench.once(turns[0])
        error = max(largest_error(got, right) for got, right in zip(first[-case.outputs :], wanted, strict=True))
        if error < LARGEST_ERROR:
            timed.append((candidate.tiles, error, bench.replays(turns)))
        else:
            wrong.append(Measurement(candidate.tiles, 0.0, error))
    best = _rounds([replay for _, _, replay in timed], ROUNDS)
    order = sorted(range(len(timed)), key=best.__getitem__)
    finals = _rounds([timed[at][2] for at in order[:FINALISTS]], FINAL_ROUNDS)
    for at, seconds in zip(order, finals, strict=False):
        best[at] = min(best[at], seconds)
    measurements = [Measurement(timed[at][0], best[at], timed[at][1]) for at in sorted(order, key=best.__getitem__)]
    rival = None if case.rival is None else library_seconds([partial(case.rival, operands) for operands in copies])
    bound = max(case.bytes / receipt.bandwidth, case.operations / receipt.rate)
    bench.forget()
    return MeasuredCase(case.name, bound, rival, measurements, wrong)


def _rounds(replays: Sequence[Callable[[], float]], rounds: int) -> list[float]:
    """The best of each over rounds in which all take turns, every other one backwards."""
    best = [float("inf")] * len(replays)
    for turn in range(rounds + 1):
        places = range(len(replays)) if turn % 2 else range(len(replays) - 1, -1, -1)
        for at in places:
            seconds = replays[at]()
            if turn:  # the first round warms up
                best[at] = min(best[at], seconds)
    return best


def _copies(case: Case, first: list[Tensor]) -> list[list[Tensor]]:
    cold = sum(first[at].nbytes for at in case.cold)
    count = max(2, min(MOST_TURNS, -(-COLD_BYTES // cold)))
    return [first, *(case.again(first) for _ in range(count - 1))]


def _launches(bench: Bench, case: Case, candidate: Candidate, operands: list[Tensor]) -> list[Launch]:
    return bench.launches(candidate.built, operands, {"rows": case.rows, "logit_rows": case.logit_rows})


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def _line(item: MeasuredCase) -> str:
    rival = "" if item.rival is None else f", library {item.rival * 1e6:.1f}"
    shown = "; ".join(f"{1e6 * made.seconds:.2f} {' '.join(map(str, made.tiles.values()))}" for made in item.measurements[:3])
    return f"{item.case}: bound {item.bound * 1e6:.2f}{rival}, {len(item.wrong)} wrong; {shown}"
