"""Runs kernels of a bundle on the device that torch uses, and times graphs of launches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path

import torch
from tokenspeed.plans.device_kernels import Computed, Constant, DeviceKernel, Pointer, evaluate
from tokenspeed.plans.device_limits import LIMITS
from tokenspeed.runtime.device.device import Device, Launch
from tokenspeed.runtime.device.driver import Driver
from tokenspeed.runtime.device.launching import ParameterBlock, Shape, prepared
from torch import Tensor

from .bundle import BuiltCase, binary

_TYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "i32": torch.int32, "u8": torch.uint8}
_ARCHITECTURES = {"sm_80": "sm_80", "sm_90": "sm_90a", "sm_100": "sm_100a"}


class Bench:
    """The first device, the kernels of a folder on it, and timed turns."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        torch.zeros(1, device="cuda")  # the driver is then the one that torch has
        self._device = Device(Driver.open("hip" if torch.version.hip else "cuda"), 0)
        self._start, self._end = (self._device.create_event(timed=True) for _ in range(2))
        self.name = self._device.name
        architecture = self._device.architecture
        self._warp = LIMITS[_ARCHITECTURES.get(architecture, architecture)].warp_size
        self._functions: dict[tuple[str, int], int] = {}
        # graphs hold addresses
        self._kept: list[Tensor] = []
        self._rooms: dict[tuple[str, str], Tensor] = {}
        self._scratch = torch.zeros(0, dtype=torch.uint8, device="cuda")

    def launches(self, built: BuiltCase, operands: Sequence[Tensor], symbols: dict[str, int]) -> list[Launch]:
        """A case's launches on these operands."""
        made = {name: self._room(name, dtype, count) for name, dtype, count in built.intermediates}
        return [
            self._launch(step.kernel, [made[at] if isinstance(at, str) else operands[at] for at in step.operands], symbols)
            for step in built.steps
        ]

    def forget(self) -> None:
        """Let go of what launches so far stand on: they, and graphs of them, are not to run again."""
        self._kept.clear()
        self._rooms.clear()

    def spoil(self) -> None:
        """Fill what steps leave for each other with what is no number."""
        for room in self._rooms.values():
            if room.is_floating_point():
                room.fill_(torch.nan)

    def once(self, launches: Sequence[Launch]) -> None:
        torch.cuda.synchronize()
        for launch in launches:
            launch()
        self._device.synchronise()

    def seconds(self, turns: Sequence[Sequence[Launch]], repeats: int = 5) -> float:
        """The best of several replays of a graph of all turns, for one turn."""
        replay = self.replays(turns)
        replay()
        return min(replay() for _ in range(repeats))

    def replays(self, turns: Sequence[Sequence[Launch]]) -> Callable[[], float]:
        """A graph of all turns: called, it runs once, and gives back the seconds of one turn."""
        graph = self._device.capture(tuple(launch for turn in turns for launch in turn), "benchmark")

        def replay() -> float:
            self._device.record(self._start)
            graph()
            self._device.record(self._end)
            self._device.synchronise()
            return self._device.seconds_between(self._start, self._end) / len(turns)

        return replay

    def _room(self, name: str, dtype: str, count: int) -> Tensor:
        """A buffer between steps. Launches run one after another, and share it."""
        found = self._rooms.get((name, dtype))
        if found is None or len(found) < count:
            found = self._rooms[name, dtype] = torch.zeros(count, dtype=_TYPES[dtype], device="cuda")
            self._kept.append(found)
        return found

    def _launch(self, kernel: DeviceKernel, operands: Sequence[Tensor], symbols: dict[str, int]) -> Launch:
        grid = [evaluate(size, symbols) for size in kernel.grid]
        blocks = (grid[0] * kernel.cluster, grid[1], grid[2])
        needed = kernel.global_scratch.bytes * prod(blocks)
        if needed > len(self._scratch):
            self._scratch = torch.zeros(needed, dtype=torch.uint8, device="cuda")
            self._kept.append(self._scratch)
        values: list[tuple[str, int | float]] = []
        for parameter in kernel.parameters:
            if isinstance(parameter, Pointer):
                values.append(("pointer", operands[parameter.operand].data_ptr()))
            elif isinstance(parameter, Computed):
                values.append(("i32", evaluate(parameter.size, symbols)))
            else:
                assert isinstance(parameter, Constant)
                values.append((parameter.type, parameter.value))
        values += [("pointer", self._scratch.data_ptr() if needed else 0), ("pointer", 0)]
        shape = Shape(blocks, kernel.warps * self._warp, kernel.shared_bytes, kernel.cluster, kernel.dependent_launch)
        return prepared(self._device, self._function(kernel), shape, ParameterBlock(values), kernel.name)

    def _function(self, kernel: DeviceKernel) -> int:
        key = (kernel.entry, kernel.shared_bytes)
        if key not in self._functions:
            data = binary(self._folder, kernel)
            self._functions[key] = self._device.load_function(data, kernel.symbol, kernel.shared_bytes, kernel.name)
        return self._functions[key]


def library_seconds(calls: Sequence[Callable[[], object]], repeats: int = 5) -> float:
    """The same for calls of torch: the best replay of a graph of all of them, for one."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls[:2]:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    best = float("inf")
    for _ in range(repeats):
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        best = min(best, start.elapsed_time(end) / 1e3)
    return best / len(calls)
