"""Ranks that share one device, by processes or by streams, or one rank alone that hears itself."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from msgspec import structs
from tokenspeed.plans.device_kernels import Exchange
from tokenspeed.plans.device_scratch import exchange_bytes
from tokenspeed.plans.perf_model import step_cost
from tokenspeed.plans.reader import Plan
from tokenspeed.plans.schema import Manifest
from tokenspeed.runtime.benchmark.fixed_steps import StepMaker, admit_greedy, run_ahead
from tokenspeed.runtime.collectives import Collectives
from tokenspeed.runtime.device import placement
from tokenspeed.runtime.device.arrays import DeviceArray
from tokenspeed.runtime.device.device import Device
from tokenspeed.runtime.device.driver import Driver
from tokenspeed.runtime.executor import PlanExecutor, load_executor
from tokenspeed.runtime.fixed_batch import Rows, equal_places, fixed_batch
from tokenspeed.runtime.goldens import replay_goldens
from tokenspeed.runtime.mesh import Rank
from torch import distributed

from ranks.bundle import BuiltSum, read
from ranks.kernel_launches import KernelLaunches

PROMPTS, NEW_TOKENS = (5, 130, 64), 12
CALLS, REPLAYS, STEPS, WARM_STEPS = 24, 7, 40, 8
MOST_ROWS = 64
"""So many blocks of two kernels run at the same time on one device."""

MOST_BLOCKS = 100
"""Of one rank's calls together: those that wait for the one ahead are on the device already, where the other rank's must be."""


def say(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


@dataclass
class Uncaptured:
    """A plan of which only decode buckets of up to `most` rows are captured."""

    plan: Plan
    most: int

    @property
    def manifest(self) -> Manifest:
        device = self.plan.manifest.device
        if device is None:
            return self.plan.manifest
        few = structs.replace(device, graph_rows=tuple(rows for rows in device.graph_rows if rows <= self.most))
        return structs.replace(self.plan.manifest, device=few)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plan, name)


def ranks(arguments: argparse.Namespace) -> None:
    """Be one of them."""
    with Plan.open(arguments.plan) as plan:
        place = Rank(plan.manifest.mesh, arguments.rank)
        collectives = Collectives(place, "gloo", arguments.address)
        shown: Any = Uncaptured(plan, _captured(plan))
        found = replay_goldens(shown, None, lambda _phase: None, collectives)
        say({"rank": place.number, "goldens": [(item.name, item.passed, item.max_error, item.tolerance) for item in found]})
        if arguments.weights:
            tokens, logits, seconds = _tokens(shown, arguments.weights, collectives)
            every: list[Any] = [None] * place.count
            distributed.all_gather_object(every, tokens)
            collectives.meet()
            if place.number == 0:
                same = all(other == tokens for other in every)
                say({"ranks_give_the_same_tokens": same, "captured": _captured(plan), "median_step_ms": round(seconds * 1e3, 2)})
                if arguments.alone:
                    _beside(arguments, tokens, logits)
        collectives.meet()


def _captured(plan: Plan) -> int:
    """The most rows of decode buckets in which the library does nothing."""
    above = [call.attributes["above"] for call in plan.program("step").calls if "above" in call.attributes]
    return min((least for least in above if isinstance(least, int)), default=0)


def _tokens(plan: Any, weights: str, collectives: Collectives | None) -> tuple[list[int], np.ndarray, float]:
    """Greedy tokens of some prompts together, the logits of every decode step, and its median seconds."""
    from tokenspeed.runtime.protocol import SamplingParameters

    executor = load_executor(plan, weights, 4, lambda _phase: None, collectives=collectives)
    if collectives is not None:
        collectives.meet()
    random = np.random.default_rng(4)
    prompts = [random.integers(0, plan.manifest.model.vocabulary, count).tolist() for count in PROMPTS]
    sampling = SamplingParameters(max_tokens=NEW_TOKENS + 1, temperature=0.0, ignore_eos=True)
    size = plan.manifest.kv.block_tokens
    for slot, prompt in enumerate(prompts):
        executor.admit(slot, sampling, (), np.array(prompt, np.int32), np.empty(0, np.int32))
    windows, rows = equal_places(plan.manifest.kv, len(prompts)), [Rows(slot, 0, prompt) for slot, prompt in enumerate(prompts)]
    tokens = executor.run(fixed_batch(rows, 4, size, windows=windows)).tokens.tolist()
    logits, seconds = [], []
    for at in range(NEW_TOKENS):
        last = tokens[-len(prompts) :]
        rows = [Rows(slot, len(prompt) + at, [last[slot]]) for slot, prompt in enumerate(prompts)]
        batch = fixed_batch(rows, 4, size, windows=windows)
        start = time.perf_counter()
        tokens += executor.run(batch).tokens.tolist()
        seconds.append(time.perf_counter() - start)
        logits.append(executor.logits_for(batch).copy())
    executor.close()
    return tokens, np.stack(logits), statistics.median(seconds)


def _beside(arguments: argparse.Namespace, tokens: Sequence[int], logits: np.ndarray) -> None:
    with Plan.open(arguments.alone) as alone:
        wanted, expected, _ = _tokens(alone, arguments.weights, None)
    same = 0
    while same < NEW_TOKENS and tokens[3 * (same + 1) : 3 * (same + 2)] == wanted[3 * (same + 1) : 3 * (same + 2)]:
        same += 1
    # logits are of the same tokens as long as the tokens are the same
    compared = logits[: same + 1], expected[: same + 1]
    apart = float(np.abs(compared[0] - compared[1]).max())
    differ = sum(a != b for a, b in zip(tokens, wanted, strict=True))
    line = {
        "alone": arguments.alone.name,
        "tokens_that_differ": differ,
        "of": len(tokens),
        "steps_compared": min(same + 1, NEW_TOKENS),
    }
    say({**line, "logits_apart": apart, "largest_logit": float(np.abs(expected).max())})


def kernels(arguments: argparse.Namespace) -> None:
    """Two ranks' kernels in two streams."""
    bundle = read(arguments.folder)
    driver = Driver.open("cuda")
    both = _Both([Device(driver, 0), Device(driver, 0)], arguments.folder)
    for built in bundle.sums:
        if built.rows <= MOST_ROWS:
            both.sum(built)
    # fewer blocks than rows: places are used in turns
    for built in bundle.sums:
        if built.rows == 2 * MOST_ROWS:
            few = structs.replace(built.kernel, grid=(16, 1, 1))
            both.sum(structs.replace(built, kernel=few))


class _Both:
    def __init__(self, devices: Sequence[Device], folder: Path) -> None:
        self.devices = devices
        self.launches = KernelLaunches(folder)
        self.tables: dict[tuple[str, int], list[int]] = {}
        self.start, self.end = (devices[0].create_event(timed=True) for _ in range(2))

    def sum(self, built: BuiltSum) -> None:
        tables = self._tables(built)
        x = [torch.randn(built.rows, built.columns, device="cuda").bfloat16() for _ in self.devices]
        residual, weight = torch.randn_like(x[0]), torch.randn(built.columns, device="cuda").bfloat16()
        totals, outs = ([torch.full_like(x[0], float("nan")) for _ in self.devices] for _ in range(2))
        launches = []
        for at, device in enumerate(self.devices):
            operands = (
                [x[at], residual, weight, tables[at], totals[at], outs[at]] if built.norm else [x[at], tables[at], totals[at]]
            )
            launches.append(self.launches.launch(device, built.kernel, built.rows, operands))
        error, same = 0.0, True
        for _ in range(3):
            for item in x:
                item.copy_(torch.randn(item.shape, device="cuda"))
            torch.cuda.synchronize()
            for launch in launches:
                launch()
            for device in self.devices:
                device.synchronise()
            wanted = x[0].double() + x[1].double() + (residual.double() if built.norm else 0)
            error = max(error, *(float((total.double() - wanted).abs().max() / wanted.abs().max()) for total in totals))
            if built.norm:
                normed = wanted * torch.rsqrt(wanted.square().mean(1, keepdim=True) + 1e-5) * weight.double()
                error = max(error, *(float((out.double() - normed).abs().max() / normed.abs().max()) for out in outs))
            same = same and all(torch.equal(pair[0], pair[1]) for pair in ((totals, outs) if built.norm else (totals,)))
        grid = built.kernel.grid[0]
        calls = max(1, min(CALLS, MOST_BLOCKS // (built.rows if isinstance(grid, str) else int(str(grid)))))
        replays = [device.capture((launch,) * calls, "measured") for device, launch in zip(self.devices, launches, strict=True)]
        times = []
        for _ in range(REPLAYS):
            self.devices[0].record(self.start)
            for replay in replays:
                replay()
            self.devices[0].record(self.end)
            for device in self.devices:
                device.synchronise()
            times.append(self.devices[0].seconds_between(self.start, self.end) / calls)
        line = {"kernel": built.way, "norm": built.norm, "columns": built.columns, "rows": built.rows, "warps": built.warps}
        say(
            {
                **line,
                "grid": grid,
                "us": round(statistics.median(times[2:]) * 1e6, 2),
                "error": round(error, 5),
                "ranks_equal": same,
            }
        )

    def _tables(self, built: BuiltSum) -> list[int]:
        key = (built.exchange.name, built.blocks)
        if key not in self.tables:
            exchanges = [device.allocate(built.exchange.bytes, "exchange") for device in self.devices]
            tables = []
            for at, device in enumerate(self.devices):
                values = np.array([*exchanges, at], np.int64)
                tables.append(device.allocate(values.nbytes, "addresses"))
                device.upload(tables[-1], values)
                device.synchronise()
            self.tables[key] = tables
        return self.tables[key]


def loopback(arguments: argparse.Namespace) -> None:
    """The first rank, which finds in the second's places what it sent there itself."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    rate = _read_rate()
    with Plan.open(arguments.plan) as plan:
        manifest = plan.manifest
        rank = Rank(manifest.mesh)
        distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=rank.count)
        axes = {axis.name: distributed.group.WORLD for axis in manifest.mesh if axis.size > 1}
        # open_exchanges by its name in the placement: there is no other rank whose memory could be mapped
        placement.open_exchanges = _hearing_itself  # pyright: ignore[reportAttributeAccessIssue]
        alone: Any = SimpleNamespace(rank=rank, groups=axes, share=lambda *_: ())
        free = torch.cuda.mem_get_info()[0]
        start = time.perf_counter()
        executor = load_executor(plan, "dummy", 4, lambda _phase: None, collectives=alone)
        taken, planned = free - torch.cuda.mem_get_info()[0], manifest.memory
        exchanges = exchange_bytes(manifest.device.exchanges) if manifest.device is not None else 0
        without = planned.total - planned.overhead - planned.communication + exchanges
        line = {"loopback": arguments.plan.name, "load_seconds": round(time.perf_counter() - start, 2), "bytes_taken": taken}
        say({**line, "planned_but_for_library_and_context": without, "exchanges": exchanges})
        _steps(arguments, executor, manifest, rate)
        if arguments.profile:
            _profiled(arguments, executor, manifest)


def _profiled(arguments: argparse.Namespace, executor: PlanExecutor, manifest: Manifest) -> None:
    """Microseconds of a decode step by kernel, waits for the kernel ahead included."""
    maker = StepMaker(manifest)
    for point in arguments.point:
        batch, context = map(int, point.split(":"))
        steps = list(maker.decode(batch, context, 4))
        run_ahead(executor, steps)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
            run_ahead(executor, steps)
        kernels = sorted(found.key_averages(), key=lambda item: -item.device_time_total)
        shown = [(item.key[:40], item.count // 4, round(item.device_time_total / 4, 1)) for item in kernels[:24]]
        say({"profile": arguments.plan.name, "point": point, "kernels": shown})


def _steps(arguments: argparse.Namespace, executor: PlanExecutor, manifest: Manifest, rate: float) -> None:
    maker = StepMaker(manifest)
    admit_greedy(executor, manifest.schedule.max_sequences)
    for point in arguments.point:
        batch, context = map(int, point.split(":"))
        seconds = run_ahead(executor, list(maker.decode(batch, context, STEPS)))[WARM_STEPS:]
        kv = batch * context * manifest.kv.bytes_per_block / manifest.kv.block_tokens
        median, least = statistics.median(seconds), (step_cost(manifest.performance, batch).weight_bytes + kv) / rate
        line = {"loopback": arguments.plan.name, "decode": point, "ms": round(median * 1e3, 3)}
        say({**line, "fastest": round(min(seconds) * 1e3, 3), "least": round(least * 1e3, 3), "share": round(least / median, 3)})
    for tokens in arguments.prompt:
        found = []
        for _ in range(4):
            begun = time.perf_counter()
            run_ahead(executor, list(maker.prompt(tokens)))
            found.append(time.perf_counter() - begun)
        say({"loopback": arguments.plan.name, "prompt": tokens, "ms": round(statistics.median(found[1:]) * 1e3, 2)})


def _hearing_itself(device: Device, exchanges: Sequence[Exchange], rank: Rank, _share: object) -> Mapping[str, DeviceArray]:
    """Two ranks; sums and gathers in words: the other's exchange begins so far behind the own one that what is sent there, at
    this rank's place, is at the other rank's place in the own one."""
    found = {}
    for item in exchanges:
        own = device.allocate(item.bytes + (1 << 20), item.name)
        *_, width = item.name.split(".")
        behind = int(width) * (8 if ".gather." in item.name else 4)
        values = np.array([own, own + behind, 0], np.int64)
        table = DeviceArray(device.allocate(values.nbytes, "addresses"), values.shape, (1,), "i64")
        device.upload(table.address, values)
        device.synchronise()
        found[item.name] = table
    assert rank.count == 2 or not found
    return found


def library(_arguments: argparse.Namespace) -> None:
    """NCCL with one rank: its sum in a graph captured by the driver in a stream of ours, as plans' graphs are."""
    store = distributed.TCPStore("127.0.0.1", 0, 1, True)  # pyright: ignore[reportPrivateImportUsage]
    distributed.init_process_group("nccl", store=store, rank=0, world_size=1)
    group = distributed.new_group([0], backend="nccl")
    free = torch.cuda.mem_get_info()[0]
    distributed.all_reduce(torch.zeros(1, device="cuda"), group=group)
    torch.cuda.synchronize()
    used = free - torch.cuda.mem_get_info()[0]
    device = Device(Driver.open("cuda"), 0)
    x, gathered = torch.randn(64, 8192, device="cuda").bfloat16(), torch.zeros(64, 8192, device="cuda").bfloat16()
    expected = x.clone()
    with device, torch.cuda.stream(torch.cuda.ExternalStream(device.stream)):

        def both() -> None:
            distributed.all_reduce(x, group=group)
            distributed.all_gather_into_tensor(gathered, x, group=group)

        replay = device.capture((both,) * 4, "library")
        for _ in range(3):
            replay()
        device.synchronise()
    right = bool(torch.equal(x, expected) and torch.equal(gathered, expected))
    say({"library": "one rank, captured", "right": right, "bytes_taken": used, "torch": torch.__version__})


def _read_rate() -> float:
    """Bytes per second that a sum over 8 GB reads."""
    data = torch.ones(4 << 30, dtype=torch.bfloat16, device="cuda")
    found = []
    for _ in range(8):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        torch.sum(data, dtype=torch.float32)
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) / 1e3)
    size = data.nbytes
    del data
    torch.cuda.empty_cache()
    say({"read_bytes_per_second": size / min(found), "device": torch.cuda.get_device_name()})
    return size / min(found)
