"""Measures what this machine can do at best, for the rates of a target description and for shares of the roofline. Prints JSON.

    python benchmarks/machine_rates.py [--threads 2] [--repeats 8]

Best of several runs each; run it on an otherwise idle machine. Bandwidths in B/s, rates in FLOP/s, dispatch in seconds.
"""

from __future__ import annotations

import argparse
import statistics
import sys

import msgspec
import torch
from tokenspeed.runtime.benchmark import machine_rates
from tokenspeed.runtime.benchmark.environment import environment


def measure(repeats: int) -> dict[str, object]:
    gemm, gemv = {}, {}
    for dtype in ("f32", "bf16"):
        rate, kernel = machine_rates.gemm_rate(dtype, max(2, repeats // 2))
        gemm[dtype] = {"flops_per_second": rate, "kernel": kernel}
        read, kernel = machine_rates.gemv_bandwidth(dtype, repeats)
        gemv[dtype] = {"bytes_per_second": read, "kernel": kernel}
    dispatch = machine_rates.dispatch_seconds()
    return {
        "sum_bytes_per_second": machine_rates.sum_bandwidth(repeats),
        "gemm": gemm,
        "gemv": gemv,
        "dispatch_seconds": dispatch | {"mean": statistics.mean(dispatch.values())},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, help="threads of the math libraries [default: all cores]")
    parser.add_argument("--repeats", type=int, default=8)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    surroundings = environment(torch.get_num_threads())
    report = {"environment": surroundings, "rates": measure(options.repeats)}
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(report), indent=1).decode() + "\n")


if __name__ == "__main__":
    main()
