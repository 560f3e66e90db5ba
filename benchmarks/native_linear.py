"""The native linear kernel beside this machine's roofline and torch's oneDNN linear, taking turns in one run.

    python benchmarks/native_linear.py [--types bf16,q8_0] [--shapes 1024x4096] [--rows 1,16,512] [--seconds 0.5] [--json]

Shapes are K x N. Weights are taken in turn from more memory than the caches hold. For each case: the time of the best and of the
median turn, weight bytes per second as a share of the read bandwidth, operations per second as a share of what registers can
do (with matrix tiles: what tiles can do in bfloat16, of all types but float32), and the share of the roofline (the larger of the
two bounds) that the best turn reaches. Both rates are probed in the same turns. `--target cpu-avx512-bf16` measures a lesser
instruction set that this machine runs too. Needs a C++ compiler.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import msgspec
import torch
from native_turns import Call, ProbedTeam, Timing, cycle, timed, timing
from tokenspeed.plans.weight_layout import stored_bytes
from tokenspeed.runtime.benchmark.environment import Environment, environment, usable_cores
from tokenspeed.runtime.host_arrays import large_bytes
from tokenspeed.runtime.native.records import PackedWeight, describe

SHAPES = "1024x4096,2048x1024,1024x6144,3072x1024,1024x151936,576x960,576x576,576x3072,1536x576,4096x4096"
TYPES = "f32,bf16,q8_0,q4_0,q4_1"
ROWS = "1,4,8,16,64,512"
TORCH = {"f32": torch.float32, "bf16": torch.bfloat16}
BEYOND_CACHES = 256 << 20
READ_BYTES = 64 << 20
TURN_BYTES, TURN_OPERATIONS = 64 << 20, 2e9
MULTIPLY_REPEATS = 100_000
OPENMP_SPINS = 0.005  # seconds that torch's threads stay on the cores after a product
ONEDNN_PACK_ROWS = 64


class Case(msgspec.Struct, frozen=True):
    """`bandwidth` and `rate` are the machine's, in bytes and operations (2 per multiplication) per second."""

    dtype: str
    inputs: int
    outputs: int
    rows: int
    weight_bytes: int
    bandwidth: float
    rate: float
    native: Timing
    onednn: Timing | None

    @property
    def operations(self) -> float:
        return 2.0 * self.rows * self.inputs * self.outputs

    @property
    def roofline(self) -> float:
        """Seconds that memory or arithmetic take at least."""
        return max(self.weight_bytes / self.bandwidth, self.operations / self.rate)


class Report(msgspec.Struct, frozen=True):
    environment: Environment
    target: str
    cases: list[Case]


class Bench:
    """A team of threads with the kernels and the probes; one stretch of memory on huge pages for all weights."""

    def __init__(self, threads: int, seconds: float, target: str) -> None:
        self._seconds = seconds
        self._bytes = torch.from_numpy(large_bytes(2 * BEYOND_CACHES)).fill_(1)
        self._team = ProbedTeam(threads, target, self._bytes.split(READ_BYTES), MULTIPLY_REPEATS)
        self.target = self._team.target

    def case(self, dtype: str, inputs: int, outputs: int, rows: int) -> Case:
        kind = TORCH.get(dtype, torch.bfloat16)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(rows, inputs, generator=generator).to(kind)
        out = torch.empty(rows, outputs, dtype=kind)
        weights = self._weights(dtype, outputs, inputs)
        count = _calls_in_a_turn(len(weights), weights[0].data.numel(), 2.0 * rows * inputs * outputs)
        arrays = [describe(weight, dtype) for weight in weights]
        given, taken = describe(x, _name(kind)), describe(out, _name(kind))
        lists = [
            self._team.sealed([Call("linear", [given, array], [taken]) for array in arrays[at : at + count]])
            for at in range(0, len(arrays) - count + 1, count)
        ]
        turns = cycle(lists)
        multiply = self._team.multiply_probe(dtype)
        library = _onednn(kind, x, out, inputs, outputs, len(weights), count) if dtype in TORCH else None
        reads, rates, native, torch_times = [], [], [], []
        end = time.perf_counter() + self._seconds
        while time.perf_counter() < end or len(native) < 3:
            reads.append(self._team.read())
            rates.append(self._team.run(multiply))
            native.append(self._team.run(next(turns)) / count)
            if library is not None:
                torch_times.append(timed(library) / count)
                time.sleep(OPENMP_SPINS)
        return Case(
            dtype=dtype,
            inputs=inputs,
            outputs=outputs,
            rows=rows,
            weight_bytes=weights[0].data.numel(),
            bandwidth=READ_BYTES / min(reads),
            rate=self._team.operations_of_a_probe / min(rates),
            native=timing(native),
            onednn=timing(torch_times) if torch_times else None,
        )

    def close(self) -> None:
        self._team.close()

    def _weights(self, dtype: str, outputs: int, inputs: int) -> list[PackedWeight]:
        """Copies of one packed weight, more than the caches hold where the memory is enough."""
        count = stored_bytes((outputs, inputs), dtype, "panel")
        memory = self._bytes if count <= len(self._bytes) else torch.empty(count + 64, dtype=torch.uint8)[:count]
        copies = max(1, min(BEYOND_CACHES, len(memory)) // count)
        parts = [memory[at * count : (at + 1) * count] for at in range(copies)]
        source = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
        weights = [PackedWeight(part, (outputs, inputs), dtype) for part in parts]
        call = Call("pack_panel", [describe(source, "bf16")], [describe(weights[0], dtype)])
        self._team.run(self._team.sealed([call]))
        for part in parts[1:]:
            part.copy_(parts[0])
        return weights


def _onednn(
    kind: torch.dtype, x: torch.Tensor, out: torch.Tensor, inputs: int, outputs: int, copies: int, count: int
) -> Callable[[], None] | None:
    """A turn of torch's linear with weights packed by oneDNN, or None where it cannot pack this type."""
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(1)).to(kind)
    try:
        packed = [torch.ops.mkldnn._reorder_linear_weight(weight, ONEDNN_PACK_ROWS) for _ in range(copies)]
    except RuntimeError:
        return None
    turns, pointwise = cycle(packed), torch.ops.mkldnn._linear_pointwise.default

    def run() -> None:
        for _ in range(count):
            out.copy_(pointwise(x, next(turns), None, "none", [], ""))

    return run


def _name(kind: torch.dtype) -> str:
    return "f32" if kind == torch.float32 else "bf16"


def _calls_in_a_turn(copies: int, weight_bytes: int, operations: float) -> int:
    return max(1, min(copies, TURN_BYTES // weight_bytes, int(TURN_OPERATIONS / operations)))


def _line(case: Case) -> str:
    best, median = case.native.best, case.native.median
    read, rate = case.weight_bytes / best, case.operations / best
    onednn = f"{case.onednn.best * 1e6:10.1f}" if case.onednn else "         -"
    return (
        f"{case.dtype:5} {f'{case.inputs}x{case.outputs}':>11} {case.rows:5} {best * 1e6:10.1f} {median * 1e6:10.1f} "
        f"{read / 1e9:7.1f} {read / case.bandwidth:5.0%} {rate / 1e9:8.1f} {rate / case.rate:5.0%} "
        f"{case.roofline / best:6.0%} {onednn}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--types", default=TYPES)
    parser.add_argument("--shapes", default=SHAPES)
    parser.add_argument("--rows", default=ROWS)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each case")
    parser.add_argument("--target", default="cpu", help="a CPU target that this machine runs (default: its best)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    surroundings, cases = environment(options.threads), []
    bench = Bench(options.threads, options.seconds, options.target)
    if not options.json:
        print(f"{bench.target}, {options.threads} threads, {surroundings.cpu}, {surroundings.date}, load {surroundings.load}")
        print("type         KxN  rows    best us  median us    GB/s share   GFLOP/s share roofl. onednn us")
    for shape in options.shapes.split(","):
        inputs, outputs = map(int, shape.split("x"))
        for dtype in options.types.split(","):
            for rows in map(int, options.rows.split(",")):
                cases.append(bench.case(dtype, inputs, outputs, rows))
                if not options.json:
                    print(_line(cases[-1]), flush=True)
    bench.close()
    if options.json:
        report = Report(surroundings, bench.target, cases)
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(report), indent=1).decode() + "\n")


if __name__ == "__main__":
    main()
