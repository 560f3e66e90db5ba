"""The native attention kernel beside this machine's roofline, in one run whose probes and calls take turns.

    python benchmarks/native_attention.py [--types bf16] [--heads 16/8x128] [--decode 1x512,16x4096] [--prefill 512] [--json]

Heads are query heads / KV heads x head size; decode cases are sequences x context, one new token each; prefill cases are
prompts of so many tokens, all in one step. Blocks lie scattered over a pool larger than the caches. For each case: the time of
the best and of the median turn, bytes of keys and values per second as a share of the read bandwidth, operations per second
(causal pairs alone) as a share of what registers can do (with matrix tiles: what tiles can do), and the share of the roofline,
the larger of the two bounds, that the best turn reaches. Both rates are probed in the same turns. Needs a C++ compiler.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from native_turns import Call, ProbedTeam, Timing, cycle, timing
from tokenspeed.runtime.benchmark.environment import Environment, environment, usable_cores
from tokenspeed.runtime.host_arrays import large_bytes
from tokenspeed.runtime.native.calls import CallList
from tokenspeed.runtime.native.records import describe

HEADS = "9/3x64,16/8x128"
DECODE = "1x512,1x4096,4x512,4x4096,16x512,16x4096"
PREFILL = "512,4096"
TORCH = {"f32": torch.float32, "bf16": torch.bfloat16}
BLOCK_TOKENS = 64
POOL_BYTES = 256 << 20  # of keys; as much of values
READ_BYTES = 16 << 20
TURN_BYTES, TURN_OPERATIONS = 16 << 20, 2e8
MULTIPLY_REPEATS = 20_000


@dataclass(frozen=True)
class Heads:
    """Query heads, KV heads and the size of each."""

    queries: int
    keys: int
    size: int

    @classmethod
    def parsed(cls, text: str) -> Heads:
        heads, size = text.split("x")
        queries, keys = heads.split("/")
        return cls(int(queries), int(keys), int(size))


class Case(msgspec.Struct, frozen=True):
    """`bandwidth` and `rate` are the machine's, in bytes and operations (2 per multiplication) per second."""

    dtype: str
    heads: str
    block_order: str
    sequences: int
    rows: int
    context: int
    kv_bytes: int
    operations: float
    bandwidth: float
    rate: float
    native: Timing

    @property
    def roofline(self) -> float:
        """Seconds that memory or arithmetic take at least."""
        return max(self.kv_bytes / self.bandwidth, self.operations / self.rate)


class Report(msgspec.Struct, frozen=True):
    environment: Environment
    target: str
    cases: list[Case]


class Bench:
    """A team of threads with the kernels and the probes, and two stretches of memory on huge pages for keys and values."""

    def __init__(self, threads: int, seconds: float) -> None:
        self._seconds = seconds
        self._keys, self._values = (torch.from_numpy(large_bytes(POOL_BYTES)).fill_(0) for _ in range(2))
        reads = [part for pool in (self._keys, self._values) for part in pool.split(READ_BYTES)]
        self._team = ProbedTeam(threads, "cpu", reads, MULTIPLY_REPEATS)
        self.target = self._team.target

    def case(self, dtype: str, heads: Heads, block_order: str, sequences: int, rows: int, context: int) -> Case:
        """`rows` new tokens of each of `sequences` contexts."""
        caches = [self._cache(pool, dtype, heads, block_order) for pool in (self._keys, self._values)]
        kv_bytes = 2 * sequences * context * heads.keys * heads.size * TORCH[dtype].itemsize
        pairs = sequences * sum(range(context - rows + 1, context + 1))
        operations = 4.0 * heads.queries * heads.size * pairs
        lists, count = self._turns(dtype, heads, caches, (sequences, rows, context), kv_bytes, operations)
        turns, multiply = cycle(lists), self._team.multiply_probe(dtype)
        reads: list[float] = []
        rates: list[float] = []
        native: list[float] = []
        end = time.perf_counter() + self._seconds
        while time.perf_counter() < end or len(native) < 3:
            reads.append(self._team.read())
            rates.append(self._team.run(multiply))
            native.append(self._team.run(next(turns)) / count)
        return Case(
            dtype=dtype,
            heads=f"{heads.queries}/{heads.keys}x{heads.size}",
            block_order=block_order,
            sequences=sequences,
            rows=rows,
            context=context,
            kv_bytes=kv_bytes,
            operations=operations,
            bandwidth=READ_BYTES / min(reads),
            rate=self._team.operations_of_a_probe / min(rates),
            native=timing(native),
        )

    def close(self) -> None:
        self._team.close()

    def _cache(self, pool: torch.Tensor, dtype: str, heads: Heads, block_order: str) -> torch.Tensor:
        """The pool as [blocks, block_tokens, KV heads, size], filled with random values."""
        kind = TORCH[dtype]
        blocks = POOL_BYTES // (BLOCK_TOKENS * heads.keys * heads.size * kind.itemsize)
        inside = (BLOCK_TOKENS, heads.keys) if block_order == "token_major" else (heads.keys, BLOCK_TOKENS)
        elements = blocks * BLOCK_TOKENS * heads.keys * heads.size
        cache = pool[: elements * kind.itemsize].view(kind).view(blocks, *inside, heads.size)
        cache.copy_(torch.randn((*inside, heads.size), generator=torch.Generator().manual_seed(2)).to(kind))
        return cache if block_order == "token_major" else cache.transpose(1, 2)

    def _turns(
        self,
        dtype: str,
        heads: Heads,
        caches: Sequence[torch.Tensor],
        step: tuple[int, int, int],
        kv_bytes: int,
        operations: float,
    ) -> tuple[list[CallList], int]:
        """Lists of calls, each on blocks of its own, and the number of calls in a list."""
        sequences, rows, context = step
        blocks = -(-context // BLOCK_TOKENS)
        pool = np.random.default_rng(0).permutation(len(caches[0])).astype(np.int32)
        copies = max(1, len(pool) // (sequences * blocks))
        if len(pool) < sequences * blocks:
            raise SystemExit(
                f"native_attention.py: {sequences} x {context} tokens are more than the pool of {len(pool)} blocks holds"
            )
        count = max(1, min(copies, TURN_BYTES // kv_bytes, int(TURN_OPERATIONS / operations)))
        generator = torch.Generator().manual_seed(1)
        q = torch.randn(sequences * rows, heads.queries, heads.size, generator=generator).to(TORCH[dtype])
        out = torch.empty_like(q)
        starts = torch.arange(sequences + 1, dtype=torch.int32) * rows
        lengths = torch.full((sequences,), context, dtype=torch.int32)
        decoding = sequences if rows == 1 else 0
        counts = torch.tensor([sequences * rows, decoding, sequences, sequences], dtype=torch.int32)
        calls = []
        for copy in range(copies // count * count):
            table = pool[copy * sequences * blocks : (copy + 1) * sequences * blocks].reshape(sequences, blocks)
            given = [describe(item, dtype) for item in (q, *caches)]
            given += [describe(item, "i32") for item in (starts, lengths, torch.from_numpy(table), counts)]
            calls.append(Call("attention", given, [describe(out, dtype)], {"scale": heads.size**-0.5}))
        return [self._team.sealed(calls[at : at + count]) for at in range(0, len(calls), count)], count


def _line(case: Case) -> str:
    best, median = case.native.best, case.native.median
    read, rate = case.kv_bytes / best, case.operations / best
    what = f"{case.sequences}x{case.context}" if case.rows == 1 else f"prefill {case.rows}"
    return (
        f"{case.dtype:5} {case.heads:>9} {case.block_order:>11} {what:>12} {best * 1e6:10.1f} {median * 1e6:10.1f} "
        f"{read / 1e9:7.1f} {read / case.bandwidth:5.0%} {rate / 1e9:8.1f} {rate / case.rate:5.0%} {case.roofline / best:6.0%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--types", default="bf16")
    parser.add_argument("--heads", default=HEADS)
    parser.add_argument("--orders", default="head_major", help="of blocks: head_major, token_major")
    parser.add_argument("--decode", default=DECODE)
    parser.add_argument("--prefill", default=PREFILL)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each case")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    surroundings, cases = environment(options.threads), []
    bench = Bench(options.threads, options.seconds)
    if not options.json:
        print(f"{bench.target}, {options.threads} threads, {surroundings.cpu}, {surroundings.date}, load {surroundings.load}")
        print("type      heads       order         step    best us  median us    GB/s share   GFLOP/s share roofl.")
    steps = [(sequences, 1, context) for sequences, context in (map(int, x.split("x")) for x in _words(options.decode))]
    steps += [(1, rows, rows) for rows in map(int, _words(options.prefill))]
    for heads in map(Heads.parsed, _words(options.heads)):
        for dtype in _words(options.types):
            for order in _words(options.orders):
                for sequences, rows, context in steps:
                    cases.append(bench.case(dtype, heads, order, sequences, rows, context))
                    if not options.json:
                        print(_line(cases[-1]), flush=True)
    bench.close()
    if options.json:
        report = Report(surroundings, bench.target, cases)
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(report), indent=1).decode() + "\n")


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


if __name__ == "__main__":
    main()
