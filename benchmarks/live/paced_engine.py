"""The engine process without a machine: its loop, scheduler and sockets are the real ones, steps take what the plan predicts.

What a server of it measures beside the simulator is what the simulator leaves out. Started by paced_server.py alone.
"""

from __future__ import annotations

import sys
import time

import msgspec
import numpy as np
from tokenspeed.plans.reader import Plan
from tokenspeed.runtime.engine import EngineLoop
from tokenspeed.runtime.engine_channel import EngineChannel
from tokenspeed.runtime.engine_process import EngineOptions, exit_with_parent
from tokenspeed.runtime.executor_interface import Started, StepResult
from tokenspeed.runtime.protocol import Ready, SamplingParameters
from tokenspeed.runtime.scheduling.ablation import POLICIES, without
from tokenspeed.runtime.scheduling.building import scheduler_of
from tokenspeed.runtime.scheduling.groups import GroupedScheduler
from tokenspeed.runtime.scheduling.step import IntArray, StepBatch
from tokenspeed.runtime.simulation.machine import VirtualMachine
from tokenspeed.runtime.simulation.step_times import StepTimes


class PacedExecutor:
    """An `Executor` whose steps run one behind the other, as on a device; tokens are drawn."""

    def __init__(self, times: StepTimes, vocabulary: int) -> None:
        self._machine, self._vocabulary, self._random = VirtualMachine(times), vocabulary, np.random.default_rng(0)

    def check(self, sampling: SamplingParameters, end_tokens: tuple[int, ...], prompt: IntArray) -> None:
        pass

    def admit(
        self, slot: int, sampling: SamplingParameters, end_tokens: tuple[int, ...], prompt: IntArray, output: IntArray
    ) -> None:
        pass

    def start(self, batch: StepBatch) -> Started:
        end = self._machine.launch(batch, time.monotonic())
        count = len(batch.logit_request_ids)
        result = StepResult(self._random.integers(0, self._vocabulary, count).astype(np.int32), (None,) * count)

        def wait() -> StepResult:
            time.sleep(max(0.0, end - time.monotonic()))
            return result

        return wait

    def close(self) -> None:
        pass


def main() -> int:
    exit_with_parent()
    options = msgspec.json.decode(sys.argv[1], type=EngineOptions)
    with Plan.open(options.plan) as plan:
        manifest = plan.manifest
    scheduler = scheduler_of(manifest, without(POLICIES[options.policy], options.without), options.tenant_weights)
    if isinstance(scheduler, GroupedScheduler):
        raise SystemExit("plans for several groups of ranks are not paced")
    times, channel = StepTimes(manifest), EngineChannel(options.commands, options.news)
    executor = PacedExecutor(times, manifest.model.vocabulary)
    channel.send(Ready({}))
    try:
        loop = EngineLoop(
            scheduler, executor, channel, manifest.model.end_tokens, overlap=options.overlap, roofline=times.roofline
        )
        return 0 if loop.run() else 1
    finally:
        channel.close()


if __name__ == "__main__":
    sys.exit(main())
