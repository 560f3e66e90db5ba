"""One rank of several that measure together: the library's collectives by size, and kernels that sum over ranks."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenspeed.plans.device_kernels import DeviceKernel
from tokenspeed.plans.schema import MeshAxis
from tokenspeed.runtime.collectives import Collectives
from tokenspeed.runtime.device.device import Device, Launch
from tokenspeed.runtime.device.driver import Driver
from tokenspeed.runtime.device.exchanges import open_exchanges
from tokenspeed.runtime.mesh import Rank
from torch import distributed

from ranks.bundle import BuiltSum, Bundle, read
from ranks.kernel_launches import KernelLaunches

SIZES = tuple(1 << power for power in range(12, 28))
"""Bytes of a rank's message: for gathers and exchanges of what a rank has afterwards."""

CALLS, REPLAYS = 24, 7
LARGE = 8 << 20
TOLERANCE = 0.02


def measure(folder: Path, number: int, address: str, only: str | None) -> None:
    """Be one of the ranks; the first prints."""
    bundle = read(folder)
    rank = Rank((MeshAxis(name="tp", size=bundle.ranks),), number)
    free = torch.cuda.mem_get_info()[0]
    start = time.perf_counter()
    collectives = Collectives(rank, "nccl", address)
    connected, used = time.perf_counter() - start, free - torch.cuda.mem_get_info()[0]
    run = _Run(collectives, folder, bundle)
    run.say(
        {
            "device": torch.cuda.get_device_name(),
            "ranks": bundle.ranks,
            "torch": torch.__version__,
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),  # pyright: ignore[reportAttributeAccessIssue]
            "environment": {name: value for name, value in os.environ.items() if name.startswith(("NCCL_", "TORCH_SYMM"))},
            "library_connected_seconds": round(connected, 2),
            "library_bytes": used,
        }
    )
    for name, part in (("library", run.library), ("kernels", run.kernels)):
        if only in {None, name}:
            with _guarded(run, name):
                part()
    run.say({"library_bytes_at_the_end": free - torch.cuda.mem_get_info()[0] - torch.cuda.memory_reserved()})
    collectives.meet()
    os._exit(0)  # what hangs at the end has nothing more to say


@contextmanager
def _guarded(run: _Run, part: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        print(json.dumps({"part": part, "rank": run.rank, "failed": f"{type(error).__name__}: {str(error)[:600]}"}), flush=True)


class _Run:
    def __init__(self, collectives: Collectives, folder: Path, bundle: Bundle) -> None:
        self.collectives, self.folder, self.bundle = collectives, folder, bundle
        self.rank, self.ranks = collectives.rank.number, bundle.ranks
        self.group = collectives.groups["tp"]

    def say(self, what: dict[str, Any]) -> None:
        if self.rank == 0:
            print(json.dumps(what), flush=True)

    def library(self) -> None:
        """By collective and size: seconds of one call in a captured graph of many, and the model that fits them."""
        found: dict[str, list[tuple[int, float]]] = {}
        for size in SIZES:
            whole = torch.randn(size // 2, device="cuda").bfloat16()
            part, parts = whole[: size // 2 // self.ranks].clone(), torch.empty_like(whole)
            calls: dict[str, Callable[[], object]] = {
                "all_reduce": lambda whole=whole: distributed.all_reduce(whole, group=self.group),
                "all_gather": lambda part=part, parts=parts: distributed.all_gather_into_tensor(parts, part, group=self.group),
                "reduce_scatter": lambda part=part, whole=whole: distributed.reduce_scatter_tensor(part, whole, group=self.group),
                "all_to_all": lambda whole=whole, parts=parts: distributed.all_to_all_single(parts, whole, group=self.group),
            }
            for name, call in calls.items():
                seconds = self._captured(call, CALLS if size < LARGE else 4)
                found.setdefault(name, []).append((size, seconds))
                self.say({"library": name, "bytes": size, "us": round(seconds * 1e6, 2)})
        for name, points in found.items():
            latency, bandwidth = fitted(points)
            self.say({"fit": name, "latency_us": round(latency * 1e6, 2), "bytes_per_second": round(bandwidth / 1e9, 1) * 1e9})
        self.say({"table": {name: {size: round(value * 1e6, 1) for size, value in points} for name, points in found.items()}})

    def _captured(self, call: Callable[[], object], calls: int) -> float:
        call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            for _ in range(calls):
                call()
        times = []
        for _ in range(REPLAYS + 2):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1e3 / calls)
        self.collectives.meet()
        return statistics.median(times[2:])

    def kernels(self) -> None:
        """Each against float64, then in captured graphs of many calls; beside it the library's sum with an addition and norm."""
        device = Device(Driver.open("cuda"), 0)
        with device:
            measured = _Kernels(self, device)
            for columns, kernel in self.bundle.norms:
                measured.library_and_norm(columns, kernel)
            for built in self.bundle.sums:
                measured.sum(built)


class _Kernels:
    def __init__(self, run: _Run, device: Device) -> None:
        self.run, self.device = run, device
        self.launches = KernelLaunches(run.folder)
        self.exchanges: dict[tuple[str, int], int] = {}
        self.start, self.end = (device.create_event(timed=True) for _ in range(2))
        self.stream = torch.cuda.ExternalStream(device.stream)

    def library_and_norm(self, columns: int, kernel: DeviceKernel) -> None:
        for rows in sorted({built.rows for built in self.run.bundle.sums if built.columns == columns}):
            x, residual, weight, total, out = self._operands(rows, columns)
            norm = self.launches.launch(self.device, kernel, rows, [x, residual, weight, total, out])

            def both(x: torch.Tensor = x, norm: Launch = norm) -> None:
                with torch.cuda.stream(self.stream):
                    distributed.all_reduce(x, group=self.run.group)
                norm()

            seconds = self._timed((both,), rows)
            self.run.say({"kernel": "library + norm", "columns": columns, "rows": rows, "us": round(seconds * 1e6, 2)})

    def sum(self, built: BuiltSum) -> None:
        x, residual, weight, total, out = self._operands(built.rows, built.columns)
        key = (built.exchange.name, built.blocks)
        if key not in self.exchanges:
            share = self.run.collectives.share

            def named(axis: str, name: str, own: bytes) -> Sequence[bytes]:
                return share(axis, f"{name}/{built.blocks}", own)

            opened = open_exchanges(self.device, (built.exchange,), self.run.collectives.rank, named)
            self.exchanges[key] = opened[built.exchange.name].address
            self.run.collectives.meet()
        peers = self.exchanges[key]
        operands = [x, residual, weight, peers, total, out] if built.norm else [x, peers, total]
        launch = self.launches.launch(self.device, built.kernel, built.rows, operands)
        errors = []
        for _ in range(3):
            x.copy_(torch.randn(x.shape, device="cuda"))
            total.fill_(float("nan"))
            torch.cuda.synchronize()
            launch()
            self.device.synchronise()
            errors.append(self._error(x, residual, weight, total, out, built.norm))
        seconds = self._timed((launch,), built.rows)
        self.run.say(
            {
                "kernel": built.way,
                "norm": built.norm,
                "columns": built.columns,
                "rows": built.rows,
                "blocks": built.blocks,
                "warps": built.warps,
                "us": round(seconds * 1e6, 2),
                "error": round(max(errors), 5),
                **({} if max(errors) < TOLERANCE else {"wrong": True}),
            }
        )

    def _operands(self, rows: int, columns: int) -> list[torch.Tensor]:
        made = [torch.randn(rows, columns, device="cuda").bfloat16() for _ in range(2)]
        generator = torch.Generator("cuda").manual_seed(columns)  # residual and weight are the same on all ranks
        made[1] = torch.randn(rows, columns, device="cuda", generator=generator).bfloat16()
        weight = torch.randn(columns, device="cuda", generator=generator).bfloat16()
        return [*made, weight, torch.empty_like(made[0]), torch.empty_like(made[0])]

    def _error(self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, total: Any, out: Any, norm: bool) -> float:
        every = [torch.empty_like(x) for _ in range(self.run.ranks)]
        distributed.all_gather(every, x, group=self.run.group)
        wanted = torch.stack([item.double() for item in every]).sum(0)
        if norm:
            wanted += residual.double()
        error = float((total.double() - wanted).abs().max() / wanted.abs().max())
        if norm:
            normed = wanted * torch.rsqrt(wanted.square().mean(1, keepdim=True) + 1e-5) * weight.double()
            error = max(error, float((out.double() - normed).abs().max() / normed.abs().max()))
        torch.cuda.synchronize()
        return error if error == error else float("inf")

    def _timed(self, launches: tuple[Launch, ...], rows: int) -> float:
        calls = CALLS if rows < 512 else 6
        replay = self.device.capture(launches * calls, "measured")
        times = []
        for _ in range(REPLAYS + 2):
            self.device.record(self.start)
            replay()
            self.device.record(self.end)
            self.device.synchronise()
            times.append(self.device.seconds_between(self.start, self.end) / calls)
        self.run.collectives.meet()
        return statistics.median(times[2:])


def fitted(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """(latency, bytes per second) of seconds = latency + bytes / bandwidth, which is least wrong relative to each point."""
    weights = [1 / seconds**2 for _, seconds in points]
    total = sum(weights)
    mean_size = sum(w * size for w, (size, _) in zip(weights, points, strict=True)) / total
    mean_seconds = sum(w * seconds for w, (_, seconds) in zip(weights, points, strict=True)) / total
    above = sum(w * (size - mean_size) * (seconds - mean_seconds) for w, (size, seconds) in zip(weights, points, strict=True))
    below = sum(w * (size - mean_size) ** 2 for w, (size, _) in zip(weights, points, strict=True))
    slope = above / below
    return mean_seconds - slope * mean_size, 1 / slope
