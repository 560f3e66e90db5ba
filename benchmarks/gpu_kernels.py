"""Device kernels of a Llama 3.1 8B step, one by one, beside their bounds and a library, on the device of this machine.

    python benchmarks/gpu_kernels.py build BUNDLE [--target h200]        # with Triton; needs no device
    python benchmarks/gpu_kernels.py measure BUNDLE [--json] [--only TEXT]   # on the device; needs no Triton

Each case is captured in a graph whose turns take operands that the caches do not hold; the best of five replays counts. Errors
are the largest of all elements against float64, as a share of the largest result. The bound is the larger of the bytes that move
at least over the bandwidth of a pass over memory, and the operations over the rate of a library's large product, both measured
in the same run; the bandwidth of reads alone may be above that of a pass, so that shares above 1 occur.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import msgspec
import torch
from gpu import rates
from gpu.all_cases import all_cases
from gpu.bundle import BuiltCase, read
from gpu.cases import Case
from gpu.on_device import Bench, library_seconds

COLD_BYTES = 400_000_000


class Result(msgspec.Struct, frozen=True):
    """Seconds of one turn; `bound` is the least that the device's rates allow, `rival` a library's (None: there is none)."""

    case: str
    error: float
    seconds: float
    bound: float
    rival: float | None


class Report(msgspec.Struct, frozen=True):
    """Rates in bytes and operations per second."""

    device: str
    torch: str
    compiler: str
    bandwidth: float
    rate: float
    results: list[Result]


def measure(folder: Path, only: str) -> Report:
    torch.manual_seed(0)
    bench, bundle = Bench(folder), read(folder)
    torch.set_default_device("cuda")
    bandwidth, rate = rates.bandwidth(), rates.rate()
    built = {item.case: item for item in bundle.cases}

    def result(case: Case, made: BuiltCase) -> Result:
        symbols = {"rows": case.rows, "logit_rows": case.logit_rows}
        first = case.operands()
        cold = sum(first[at].nbytes for at in case.cold)
        copies = [first, *(case.again(first) for _ in range(max(0, min(15, -(-COLD_BYTES // cold) - 1))))]
        turns = [bench.launches(made, operands, symbols) for operands in copies]
        bench.once(turns[0])
        error = max(
            rates.largest_error(got, wanted) for got, wanted in zip(first[-case.outputs :], case.reference(first), strict=True)
        )
        rival = case.rival
        library = None if rival is None else library_seconds([partial(rival, operands) for operands in copies])
        bound = max(case.bytes / bandwidth, case.operations / rate)
        return Result(case.name, error, bench.seconds(turns), bound, library)

    results = [result(case, built[case.name]) for case in all_cases() if only in case.name and case.name in built]
    return Report(bench.name, str(torch.__version__), bundle.compiler, bandwidth, rate, results)


def _line(item: Result) -> str:
    share = f"{100 * item.bound / item.seconds:.0f} %"
    rival = "" if item.rival is None else f"{1e6 * item.rival:.1f}"
    return f"| {item.case} | {1e6 * item.seconds:.1f} | {share} | {rival} | {item.error:.1e} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("build", "measure"))
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--target", default="h200")
    parser.add_argument("--only", default="", help="cases whose names contain this")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.action == "build":
        from gpu.building import build_bundle

        print(f"{build_bundle(options.target, options.bundle, options.only)} cases in {options.bundle}")
        return
    report = measure(options.bundle, options.only)
    if options.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(report), indent=1).decode() + "\n")
        return
    print(f"{report.device}, torch {report.torch}, {report.compiler}")
    print(f"pass over memory {report.bandwidth / 1e12:.2f} TB/s, product {report.rate / 1e12:.0f} TFLOP/s")
    print("| case | us | of the bound | library, us | error |\n|---|---|---|---|---|")
    print("\n".join(map(_line, report.results)))


if __name__ == "__main__":
    main()
