"""The engine process, but after some steps a kernel is launched on addresses that are nowhere: the device is lost."""

from __future__ import annotations

import sys
from typing import Any

from tokenspeed.runtime import engine_process, executor
from tokenspeed.runtime.device.arrays import DeviceArray
from tokenspeed.runtime.executor import PlanExecutor, load_executor
from tokenspeed.runtime.executor_interface import Started
from tokenspeed.runtime.scheduling.step import StepBatch

GOOD_STEPS = 30
_NOWHERE = 1 << 20
_FUNCTION = "record_tokens"


class Breaking:
    """An executor that breaks the device once `GOOD_STEPS` steps were started."""

    def __init__(self, whole: PlanExecutor, kernels: Any, functions: Any) -> None:
        self._whole, self._steps = whole, 0
        function = next(item for item in functions if item.name.startswith(_FUNCTION))
        operands = [DeviceArray(_NOWHERE, (64,), (1,), dtype) for dtype in (*function.inputs, *function.outputs)]
        rows = {"rows": 1, "logit_rows": 1}
        self._breaking = kernels.prepare(f"device.{function.name}", rows, operands, "a launch that is broken on purpose")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)

    def start(self, batch: StepBatch) -> Started:
        self._steps += 1
        if self._steps == GOOD_STEPS:
            for launch in self._breaking:
                launch()
        return self._whole.start(batch)


def load(plan: Any, *arguments: Any, **options: Any) -> Breaking:
    whole = load_executor(plan, *arguments, **options)
    runtime = whole._placement.surroundings.device  # pyright: ignore[reportPrivateUsage]
    assert runtime is not None
    return Breaking(whole, runtime.kernels, plan.manifest.device.functions)


if __name__ == "__main__":
    executor.load_executor = load  # pyright: ignore[reportAttributeAccessIssue]
    sys.exit(engine_process.main())
