"""A plan for two accelerators whose ranks sum through each other's memory: what is in it, and that a rank launches it.

Machine code is not made here, and the fake driver's other rank is this one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenspeed.compiler.memory import COMMUNICATION
from tokenspeed.passes.placing.pins import Pin
from tokenspeed.plans.device_scratch import exchange_bytes
from tokenspeed.plans.reader import Plan
from tokenspeed.runtime.device import library
from tokenspeed.runtime.device.device import Device
from tokenspeed.runtime.executor import load_executor
from tokenspeed.runtime.fixed_batch import Rows, fixed_batch
from tokenspeed.runtime.mesh import Rank
from tokenspeed.runtime.protocol import SamplingParameters

from ..runtime.device.fake_driver import FakeDriver, build
from .test_device_plan import build_with, compiled, headers_alone, kind_of

CUT = {"parallel": "tp=2", "placement": (Pin("*", "cut"),), "memory": 2400 << 20}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plan]:
    with pytest.MonkeyPatch.context() as patch:
        build_with(patch, headers_alone)
        path = compiled(tmp_path_factory.mktemp("plan"), "h200", **CUT)
    with Plan.open(path) as opened:
        opened.verify_all()
        yield opened


def test_sums_are_kernels_in_every_bucket(plan: Plan) -> None:
    manifest, step = plan.manifest, plan.program("step")
    assert manifest.device is not None
    exchanges = manifest.device.exchanges
    assert {item.axis for item in exchanges} == {"tp"} and manifest.memory.communication == COMMUNICATION + exchange_bytes(
        exchanges
    )
    sums = [call for call in step.calls if call.function == "all_reduce"]
    assert sums and all(call.inputs == call.outputs for call in sums)  # in place
    assert all(int(str(call.attributes["above"])) >= step.buckets[-1].rows for call in sums)
    read = {name for call in step.calls for name in call.inputs if name.startswith("exchange.")}
    assert read == {item.name for item in exchanges}


def test_a_rank_launches_it(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a decode step is in two graphs: nothing is left to the library in such small steps."""
    assert plan.manifest.device is not None
    fake: FakeDriver = build(tmp_path)
    fake.reset("cuda")
    fake.be(memory_bytes=8 << 30)
    for kernel in plan.manifest.device.kernels:
        fake.declare(kernel.symbol, "".join(kind_of(item) for item in kernel.parameters))
    monkeypatch.setattr(library, "open_library", lambda device, *_: WithoutTorch(device))

    def share(_axis: str, _name: str, own: bytes) -> Sequence[bytes]:
        return [own, own]

    second: Any = SimpleNamespace(rank=Rank(plan.manifest.mesh, 1), groups={}, share=share)
    executor = load_executor(plan, "dummy", None, lambda _phase: None, driver=fake.driver(), collectives=second)
    executor.admit(0, SamplingParameters(max_tokens=9, temperature=0.0), (), np.arange(3, dtype=np.int32), np.empty(0, np.int32))
    fake.clear_log()
    executor.run(fixed_batch([Rows(0, 3, [-1]), Rows(1, 0, [4])], 4, plan.manifest.kv.block_tokens))
    assert [line.split()[1] for line in fake.log() if line.startswith("launch")] == ["graph", "graph"]
    executor.close()
    assert fake.problem == "" and fake.held == 0


class WithoutTorch(library.DeviceLibrary):
    """Nothing is called of it."""

    def __init__(self, device: Device) -> None:
        super().__init__(device)

    def close(self) -> None:
        pass
