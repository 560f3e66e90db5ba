"""What benchmarks of native kernels share: a team of threads with the kernels and the probes, and turns that are timed."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec
import torch
from tokenspeed.runtime.native.calls import CallList
from tokenspeed.runtime.native.library import NativeLibrary
from tokenspeed.runtime.native.records import NativeArray, describe
from tokenspeed.runtime.native.team import ThreadTeam
from tokenspeed.targets.cpu.build import build_library, find_compiler
from tokenspeed.targets.registry import find_target

PROBES = Path(__file__).with_name("native_probe.cpp")
T = TypeVar("T")


class Timing(msgspec.Struct, frozen=True):
    """Seconds of one call."""

    best: float
    median: float


@dataclass(frozen=True)
class Call:
    """One call of a kernel of the library by name."""

    name: str
    given: list[NativeArray]
    taken: list[NativeArray]
    attributes: dict[str, float | str] = field(default_factory=dict)


class ProbedTeam:
    """Threads with the kernels of a CPU target and the probes of this machine's rates.

    Ends the program when there is no C++ compiler.
    """

    def __init__(self, threads: int, target: str, reads: Sequence[torch.Tensor], multiply_repeats: int) -> None:
        compiler = find_compiler()
        if compiler is None:
            raise SystemExit("benchmarks of native kernels need a C++ compiler: install g++ 12 or newer")
        machine = find_target(target)
        self.target, self._tiles, self._repeats = machine.name, "amx_bf16" in machine.features, multiply_repeats
        data = build_library(compiler, machine.compiler_flags, (PROBES,))
        self._library = NativeLibrary(data, hashlib.sha256(data).hexdigest())
        self._team = ThreadTeam(self._library, threads)
        self._reads = cycle([self.sealed([Call("read_probe", [describe(part, "u8")], [])]) for part in reads])
        self._products = torch.zeros(1, dtype=torch.int64)

    def close(self) -> None:
        self._team.close()

    def sealed(self, run: Sequence[Call]) -> CallList:
        """Calls that the team makes one after the other."""
        calls = CallList(self._library)
        for call in run:
            calls.add(call.name, call.given, call.taken, call.attributes, call.name)
        self._team.reserve(calls.seal(self._team.size))
        return calls

    def run(self, calls: CallList) -> float:
        """Seconds that the calls take."""
        return timed(lambda: calls.run(self._team))

    def read(self) -> float:
        """Seconds of reading the next of `reads`."""
        return self.run(next(self._reads))

    def multiply_probe(self, dtype: str) -> CallList:
        """Products in registers, of the instruction whose rate bounds products with a type."""
        peak = "f32" if dtype == "f32" else "tiles" if self._tiles else "bf16" if dtype == "bf16" else "int8"
        attributes: dict[str, float | str] = {"type": peak, "repeats": self._repeats}
        return self.sealed([Call("multiply_probe", [], [describe(self._products, "i64")], attributes)])

    @property
    def operations_of_a_probe(self) -> float:
        """Of the multiply probe that ran last, 2 per multiplication."""
        return 2.0 * int(self._products) * self._team.size


def cycle(items: Sequence[T]) -> Iterator[T]:
    while True:
        yield from items


def timed(run: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def timing(seconds: list[float]) -> Timing:
    return Timing(min(seconds), statistics.median(seconds))
