"""One process: an engine with a row of NaN in its table of embeddings, and NaN in all of its cache. Prints how requests ended.

The requests whose prompts hold that row's token must end with an error, all others as they should: what a block of the cache
held before a sequence wrote there must not matter.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import numpy as np
from tokenspeed.plans.kv_caches import cache_names
from tokenspeed.plans.reader import Plan
from tokenspeed.plans.schema import Manifest
from tokenspeed.runtime.benchmark.closed_loop import ClosedLoop
from tokenspeed.runtime.device.arrays import DeviceArray
from tokenspeed.runtime.engine import EngineLoop
from tokenspeed.runtime.executor import PlanExecutor, load_executor
from tokenspeed.runtime.protocol import SamplingParameters, Submit, packed
from tokenspeed.runtime.scheduling.kv import manager_of
from tokenspeed.runtime.scheduling.request import SchedulerLimits
from tokenspeed.runtime.scheduling.scheduler import Scheduler

POISON, OUTPUT = 7, 12
_NOT_A_NUMBER = {"bf16": np.uint16(0x7FC0), "f16": np.uint16(0x7E00), "f32": np.uint32(0x7FC00000)}


def poison(plan: Plan, executor: PlanExecutor, name: str) -> None:
    """Write NaN over a row of the table, and over the caches."""
    around = executor._placement.surroundings  # pyright: ignore[reportPrivateUsage]
    table, device = around.inputs[name], around.device
    assert isinstance(table, DeviceArray) and device is not None
    row = np.full(table.shape[1], _NOT_A_NUMBER[table.dtype])
    caches = [around.state[name] for group in plan.manifest.kv.groups for name in cache_names(group)]
    with device.running():
        for cache in caches:
            assert isinstance(cache, DeviceArray)
            device.device.driver.call("fill_bytes", cache.address, 0xFF, cache.nbytes, device.device.stream)
        device.device.upload(table.address + POISON * row.nbytes, row)
        device.device.synchronise()


def table_name(plan: Plan) -> str:
    """The first weight that a step reads; "" where the logits are made from it too, so that one row would spoil all."""
    names = {weight.name for weight in plan.manifest.weights}
    step = next(plan.program(item.name) for item in plan.manifest.programs if item.role == "step")
    read = [name for call in step.calls for name in call.inputs if name in names]
    return read[0] if read.count(read[0]) == 1 else ""


def submits(manifest: Manifest, rounds: int, bad: set[str]) -> Iterator[Submit]:
    most = manifest.schedule.max_sequences
    length = min(3 * manifest.kv.block_tokens // 2, manifest.model.max_context - OUTPUT - 1)
    random = np.random.default_rng(5)
    sampling = SamplingParameters(max_tokens=OUTPUT, temperature=0.0, ignore_eos=True)
    for number in range(rounds * most):
        tokens = random.integers(POISON + 1, manifest.model.vocabulary, length)
        name = f"{number}"
        if number % 5 == 2 and number < most:
            tokens[length // 2] = POISON
            bad.add(name)
        yield Submit(name, packed(tokens.tolist()), sampling)


def main() -> None:
    with Plan.open(sys.argv[1]) as plan:
        name = table_name(plan)
        if not name:
            print(json.dumps({"skipped": "logits are made from the table of embeddings"}))
            return
        executor = load_executor(plan, sys.argv[2], None, lambda _phase: None)
        manifest, bad = plan.manifest, set[str]()
        poison(plan, executor, name)
        scheduler = Scheduler(SchedulerLimits.from_plan(manifest.schedule, manifest.model.max_context), manager_of(manifest.kv))
        channel = ClosedLoop(submits(manifest, 4, bad), manifest.schedule.max_sequences)
        EngineLoop(scheduler, executor, channel, manifest.model.end_tokens).run()
        executor.close()
        ends = {name: (item.error, len(item.tokens)) for name, item in channel.requests.items()}
        wrong = {
            name: end for name, end in ends.items() if (name in bad) != bool(end[0]) or (name not in bad and end[1] != OUTPUT)
        }
        said = next((end[0] for name, end in ends.items() if name in bad), "")
        print(json.dumps({"requests": len(ends), "bad": len(bad), "wrong": wrong, "failure": channel.failure, "said": said}))


if __name__ == "__main__":
    main()
