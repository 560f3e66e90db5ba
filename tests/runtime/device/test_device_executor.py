"""The executor on a plan with device kernels, end to end over a fake driver: from a file to sampled tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs
from tokenspeed.plans.errors import MemoryPlanError, TargetMismatch
from tokenspeed.plans.reader import Plan
from tokenspeed.runtime.device import placement
from tokenspeed.runtime.device.arrays import DeviceArray
from tokenspeed.runtime.device.errors import DeviceError, DeviceLost
from tokenspeed.runtime.device.placement import arena_bytes
from tokenspeed.runtime.device.uploading import WeightsOnTheirWay
from tokenspeed.runtime.executor import PlanExecutor, load_executor
from tokenspeed.runtime.fixed_batch import Rows, fixed_batch
from tokenspeed.runtime.host import check_host
from tokenspeed.runtime.protocol import SamplingParameters
from tokenspeed.runtime.scheduling.step import StepBatch

from .device_plan import BLOCK_TOKENS, device_part, expected_logits, write_device_plan
from .fake_driver import FakeDriver


@pytest.fixture
def plan(fake: FakeDriver, tmp_path: Path) -> Iterator[Plan]:
    with Plan.open(write_device_plan(tmp_path / "plan.bin", fake.vendor)) as opened:
        opened.verify_all()
        yield opened


@pytest.fixture
def executor(fake: FakeDriver, plan: Plan) -> Iterator[PlanExecutor]:
    loaded = load_executor(plan, "counter", None, lambda _phase: None, driver=fake.driver())
    yield loaded
    loaded.close()


def batch(*rows: Rows) -> StepBatch:
    return fixed_batch(rows, 4, BLOCK_TOKENS)


def without_logits(step: StepBatch) -> StepBatch:
    nothing = np.empty(0, np.int32)
    fields = {name: getattr(step, name) for name in StepBatch.__struct_fields__}
    return StepBatch(**{**fields, "logit_rows": nothing, "logit_slots": nothing, "logit_request_ids": ()})


def admit(executor: PlanExecutor, slot: int, prompt: list[int]) -> None:
    executor.admit(slot, SamplingParameters(max_tokens=9, temperature=0.0), (), np.array(prompt, np.int32), np.empty(0, np.int32))


def next_token(token: int) -> int:
    return int(expected_logits(token).argmax())


def test_tokens_of_prefill_and_decode(executor: PlanExecutor) -> None:
    admit(executor, 0, [3, 9, 4])
    admit(executor, 2, [7, 5])
    first = executor.run(batch(Rows(0, 0, [3, 9, 4]), Rows(2, 0, [7, 5]))).tokens.tolist()
    assert first == [next_token(4), next_token(5)]
    # -1 is what the slot sampled last, which only the device knows
    second = executor.run(batch(Rows(2, 2, [-1]), Rows(0, 3, [-1]))).tokens.tolist()
    assert second == [next_token(first[1]), next_token(first[0])]
    assert executor.run(batch(Rows(0, 4, [-1]))).tokens.tolist() == [next_token(second[1])]


def test_a_step_is_started_before_the_one_ahead_is_waited_for(fake: FakeDriver, executor: PlanExecutor) -> None:
    admit(executor, 0, [3])
    started = [executor.start(batch(Rows(0, at, [3 if at == 0 else -1]))) for at in range(2)]
    first = started[0]().tokens.tolist()
    third = executor.start(batch(Rows(0, 2, [-1])))
    second = started[1]().tokens.tolist()
    assert first == [next_token(3)] and second == [next_token(first[0])] and third().tokens.tolist() == [next_token(second[0])]


def test_decode_buckets_are_for_one_row_of_each_sequence(executor: PlanExecutor) -> None:
    """Two rows of one sequence run in the larger bucket, which is not captured."""
    assert executor.run(batch(Rows(0, 0, [3, 4]))).tokens.tolist() == [next_token(4)]
    assert executor.run(batch(Rows(0, 2, [5]), Rows(1, 0, [6]))).tokens.tolist() == [next_token(5), next_token(6)]


def test_logits_without_sampling(executor: PlanExecutor) -> None:
    logits = executor.logits_for(batch(Rows(0, 0, [1]), Rows(1, 0, [2, 30])))
    assert np.array_equal(logits, [expected_logits(1), expected_logits(30)])


def test_a_step_that_samples_nothing(executor: PlanExecutor) -> None:
    assert executor.run(without_logits(batch(Rows(0, 0, [1, 2, 3])))).tokens.size == 0
    assert executor.run(batch(Rows(0, 3, [6]))).tokens.tolist() == [next_token(6)]


def test_decode_steps_are_two_graphs_and_one_upload(fake: FakeDriver, executor: PlanExecutor) -> None:
    """The decode bucket was captured at load; a step then allocates nothing and launches nothing else."""
    assert sum(line.startswith("begin capture") for line in fake.log()) == 2
    executor.run(batch(Rows(0, 0, [3])))
    held = fake.held
    fake.clear_log()
    executor.run(batch(Rows(0, 1, [4])))
    steps = [line for line in fake.log() if not line.startswith("set ")]
    assert [line for line in steps if "graph" in line] == ["launch graph of 4 nodes", "launch graph of 1 nodes"]
    assert sum("to device" in line for line in steps) == 1 and not any(line.startswith("launch add") for line in steps)
    assert fake.held == held


def test_other_buckets_are_launched_one_by_one(fake: FakeDriver, executor: PlanExecutor) -> None:
    fake.clear_log()
    executor.run(batch(Rows(0, 0, [3, 4, 5])))
    launched = [line.split()[1] for line in fake.log() if line.startswith("launch ")]
    assert launched == ["embed_f32", "add_row_f32", "add_row_f32", "take_rows_f32", "argmax_f32"]


def test_what_a_step_does_not_need_is_left_out(fake: FakeDriver, tmp_path: Path) -> None:
    part = device_part(fake.vendor)
    functions = tuple(
        structs.replace(
            item, decoding_only=item.name == "add_row", by="logit_rows" if item.name in {"take_rows", "argmax"} else "rows"
        )
        for item in part.functions
    )
    path = write_device_plan(tmp_path / "plan.bin", fake.vendor, device=structs.replace(part, functions=functions))
    with Plan.open(path) as plan:
        loaded = load_executor(plan, "counter", None, lambda _phase: None, driver=fake.driver())
    chunk = batch(Rows(0, 0, [3, 4, 5]))
    launched: list[list[str]] = []
    for one in (chunk, without_logits(chunk), batch(Rows(1, 4, [6]), Rows(0, 3, [3, 4, 5]))):
        fake.clear_log()
        loaded.run(one)
        launched.append([line.split()[1].removesuffix("_f32") for line in fake.log() if line.startswith("launch ")])
    loaded.close()
    last = ["take_rows", "argmax"]
    assert launched == [["embed", *last], ["embed"], ["embed", "add_row", "add_row", *last]]


def test_dummy_weights_are_made_on_the_device(fake: FakeDriver, plan: Plan) -> None:
    loaded = load_executor(plan, "dummy", None, lambda _phase: None, driver=fake.driver())
    admit(loaded, 0, [3])
    assert 0 <= loaded.run(batch(Rows(0, 0, [3]))).tokens[0] < 32 and any("on device" in line for line in fake.log())
    loaded.close()


def test_memory_is_what_the_plan_says(fake: FakeDriver, plan: Plan, executor: PlanExecutor) -> None:
    assert fake.device_bytes == arena_bytes(plan.manifest) == plan.manifest.memory.total - plan.manifest.memory.overhead
    assert executor.scratch_bytes == 0


def test_a_device_that_is_lost_in_a_step(fake: FakeDriver, executor: PlanExecutor) -> None:
    executor.run(batch(Rows(0, 0, [3])))
    fake.fail(4, 719)
    with pytest.raises(DeviceLost):
        executor.run(batch(Rows(0, 1, [4])))


class InTurn(WeightsOnTheirWay):
    """Calls of the driver come in the same order each time: nothing else is done while weights are loaded."""

    def __init__(self, arrays: Mapping[str, DeviceArray], load: Callable[[], None]) -> None:
        super().__init__(arrays, load)
        self.settle()


def test_any_failure_while_loading_is_an_error_that_frees_everything(
    fake: FakeDriver, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "WeightsOnTheirWay", InTurn)
    loaded = load_executor(plan, "counter", None, lambda _phase: None, driver=fake.driver())
    log = fake.log()
    loaded.close()
    releases = ("destroy", "free", "unload")  # a release that fails keeps what it was to release
    failing = [at for at, line in enumerate(log, 1) if at > 1 and not line.startswith(releases)]
    for nth in failing:
        fake.reset(fake.vendor)
        driver = fake.driver()
        fake.fail(nth - 1, 304)
        with pytest.raises(DeviceError) as failure:
            load_executor(plan, "counter", None, lambda _phase: None, driver=driver)
        assert failure.value.code == 304 and fake.held == 0 and fake.problem == ""


def test_another_device_is_refused(fake: FakeDriver, plan: Plan) -> None:
    if fake.vendor == "hip":
        pytest.skip("the fake's HIP device is always the same")
    fake.be(major=8)
    with pytest.raises(TargetMismatch, match=r"(?s)expected: sm_90a.*got: +sm_80 \(Fake accelerator\)"):
        load_executor(plan, "counter", None, lambda _phase: None, driver=fake.driver())


def test_a_device_that_is_too_small_is_refused(fake: FakeDriver, plan: Plan) -> None:
    fake.be(memory_bytes=10_000)
    with pytest.raises(MemoryPlanError, match="more device memory than is free"):
        load_executor(plan, "counter", None, lambda _phase: None, driver=fake.driver())


def test_the_host_is_not_asked_for_what_the_device_must_have(plan: Plan) -> None:
    check_host(plan.manifest, features=frozenset(), memory_bytes=1)
