"""Functions of the allow-list in a plan for a device: torch over the fake driver's memory, beside kernels and captured graphs."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from tokenspeed.plans.errors import TargetMismatch
from tokenspeed.plans.program import Attribute, Bucket, Buffer, Call, Program, Repeat
from tokenspeed.plans.reader import Plan
from tokenspeed.plans.recurrence_body import RECURRENCE_INPUTS, BodyCall, RecurrenceBody, Value, encode_body
from tokenspeed.plans.schema import StateGroup
from tokenspeed.runtime.device import library
from tokenspeed.runtime.device.arrays import DeviceArray
from tokenspeed.runtime.device_arrays import TORCH_TYPES
from tokenspeed.runtime.dummy_weights import counter_array
from tokenspeed.runtime.executor import PlanExecutor, load_executor
from tokenspeed.runtime.fixed_batch import Rows, fixed_batch

from .device_plan import BLOCK_TOKENS, LAYERS, ROWS, SEQUENCES, VOCABULARY, device_manifest, write_device_plan
from .fake_driver import FakeDriver

POOL = 1 << 20


class LibraryOnTheHost(library.DeviceLibrary):
    """The fake driver's device memory is the host's."""

    def close(self) -> None:
        pass

    def tensor(self, array: DeviceArray) -> torch.Tensor:
        span = 1 + sum((extent - 1) * stride for extent, stride in zip(array.shape, array.strides, strict=True))
        kind = TORCH_TYPES[array.dtype]
        memory = (ctypes.c_uint8 * (span * kind.itemsize)).from_address(array.address)
        return torch.frombuffer(memory, dtype=kind).as_strided(array.shape, array.strides)


def with_library_calls() -> Program:
    """Each layer adds its row, halves, and adds up along the sequence."""
    value = Value("f32", (VOCABULARY,))
    both = json.dumps({"args": [{"operand": 0}, {"operand": 1}], "kwargs": {}})
    add = BodyCall("aten.add.tensor", (0, 1), both, "t.,t.->t.", value)
    body = encode_body(RecurrenceBody(inputs=(value,), states=(value,), calls=(add,), out=2, new_states=(2,)))
    halve: dict[str, Attribute] = {"arguments": json.dumps({"args": [{"operand": 0}, 0.5], "kwargs": {}}), "layouts": "bt.->bt."}
    layer = (
        Call("device.add_row", ("row.{i}",), ("hidden",), label="layers.{i}"),
        Call("aten.mul.scalar", ("hidden",), ("halved",), halve, "layers.{i}"),
        Call("recurrence", ("halved", *RECURRENCE_INPUTS), ("hidden", "kv.state.{i}.0"), {"body": body}, "layers.{i}"),
    )
    size = ROWS * 4 * VOCABULARY
    return Program(
        name="step",
        rank=0,
        buffers=(
            Buffer("logits", "f32", ("logit_rows", VOCABULARY)),
            Buffer("hidden", "f32", ("rows", VOCABULARY)),
            Buffer("halved", "f32", ("rows", VOCABULARY)),
        ),
        views=(),
        body=(
            Call("device.embed", ("token_ids", "embedding", "last_tokens", "row_slots"), ("hidden",)),
            Repeat(0, LAYERS, 1, layer),
            Call("device.take_rows", ("hidden", "logit_rows"), ("logits",)),
        ),
        buckets=(Bucket(2, 2, (0, 512, 1024), 2048), Bucket(ROWS, SEQUENCES, (0, 512, 512 + size), 512 + 2 * size)),
    )


@pytest.fixture
def plan(fake: FakeDriver, tmp_path: Path) -> Iterator[Plan]:
    program, base = with_library_calls(), device_manifest(fake.vendor)
    states = StateGroup(name="s", layers=tuple(range(LAYERS)), slots=SEQUENCES, shapes=((VOCABULARY,),), dtypes=("f32",))
    memory = msgspec.structs.replace(
        base.memory, arena=program.buckets[-1].arena_bytes, states=LAYERS * SEQUENCES * VOCABULARY * 4, workspace=POOL
    )
    kv = msgspec.structs.replace(base.kv, states=(states,))
    with Plan.open(write_device_plan(tmp_path / "plan.bin", fake.vendor, program, memory=memory, kv=kv)) as opened:
        opened.verify_all()
        yield opened


@pytest.fixture
def executor(fake: FakeDriver, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> Iterator[PlanExecutor]:
    monkeypatch.setattr(
        library, "open_library", lambda device, _functions, most: LibraryOnTheHost(device) if most == POOL else None
    )
    loaded = load_executor(plan, "counter", None, lambda _phase: None, driver=fake.driver())
    yield loaded
    loaded.close()


def expected(tokens: list[int]) -> np.ndarray:
    """Logits of a sequence's last token."""
    hidden = counter_array("embedding", (VOCABULARY, VOCABULARY), "f32").data[tokens]
    for layer in range(LAYERS):
        hidden = np.cumsum((hidden + counter_array(f"row.{layer}", (VOCABULARY,), "f32").data) * 0.5, axis=0)
    return hidden[-1]


def test_logits_of_prefill_and_decode(executor: PlanExecutor) -> None:
    """Sequences do not see each other's states, and one that begins anew in a slot finds none."""

    def logits(*rows: Rows) -> np.ndarray:
        return executor.logits_for(fixed_batch(rows, 4, BLOCK_TOKENS))

    first = logits(Rows(0, 0, [3, 9, 4]), Rows(2, 0, [7, 5]))
    np.testing.assert_allclose(first, [expected([3, 9, 4]), expected([7, 5])], rtol=1e-6)
    second = logits(Rows(2, 2, [8]), Rows(0, 3, [1]))
    np.testing.assert_allclose(second, [expected([7, 5, 8]), expected([3, 9, 4, 1])], rtol=1e-6)
    np.testing.assert_allclose(logits(Rows(0, 0, [6])), [expected([6])], rtol=1e-6)


def test_kernels_between_library_calls_are_captured(fake: FakeDriver, executor: PlanExecutor) -> None:
    """A graph holds what has no library call in it; a kernel alone is launched as it is."""
    fake.clear_log()
    executor.logits_for(fixed_batch([Rows(0, 0, [3])], 4, BLOCK_TOKENS))
    launched = [line.split()[1] for line in fake.log() if line.startswith("launch ")]
    assert launched == ["graph", "add_row_f32", "take_rows_f32"]


def test_what_a_library_raises_is_an_error_of_the_device(executor: PlanExecutor, fake: FakeDriver) -> None:
    def failing() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    with fake.device() as device, pytest.raises(Exception, match=r"(?s)more device memory than the plan.*layers.3.*20.00 MiB"):
        LibraryOnTheHost(device).guarded(failing, "layers.3")()
    device.close()


def test_torch_that_cannot_use_the_device(fake: FakeDriver, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TargetMismatch, match=r"(?s)calls of aten.mul.scalar, recurrence.*expected: torch built for"):
        load_executor(plan, "counter", None, lambda _phase: None, driver=fake.driver())
