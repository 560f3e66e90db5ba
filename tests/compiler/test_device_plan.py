"""Plans for accelerators: what the compiler writes is sound, and the runtime launches it, over a fake driver.

Machine code is not made here: a header stands for it (tests/targets/triton has the kernels themselves).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenspeed.compiler import device_section
from tokenspeed.compiler.frontends.source import open_model
from tokenspeed.compiler.options import CompileOptions
from tokenspeed.compiler.pipeline import compile_model
from tokenspeed.ir.module import context
from tokenspeed.passes.device_setting import device_setting
from tokenspeed.passes.schedule import TrafficProfile, schedule
from tokenspeed.plans.device_kernels import Constant, DeviceKernel, KernelReceipt, Pointer
from tokenspeed.plans.errors import MemoryPlanError, ModelError, UsageError
from tokenspeed.plans.program import Bucket, Call, Program
from tokenspeed.plans.reader import Plan
from tokenspeed.plans.writer import write_plan
from tokenspeed.runtime.device.placement import arena_bytes
from tokenspeed.runtime.executor import load_executor
from tokenspeed.runtime.fixed_batch import Rows, fixed_batch
from tokenspeed.runtime.protocol import SamplingParameters
from tokenspeed.targets.accelerator import Accelerator
from tokenspeed.targets.registry import ACCELERATORS
from tokenspeed.targets.triton.build_many import Built
from tokenspeed.targets.triton.kernel import FunctionTemplate, Launch

from ..runtime.device.fake_driver import MACHINES, FakeDriver, build, elf_image, entry_name
from ..tiny_models import FAMILIES

Build = Callable[[Launch, Accelerator, str], tuple[DeviceKernel, bytes]]
OPTIONS = {"dtype": "bf16", "memory": 1 << 30, "max_sequences": 6, "prefill_chunk": 100, "max_context": 256}


def headers_alone(launch: Launch, accelerator: Accelerator, _cache: str) -> tuple[DeviceKernel, bytes]:
    """A kernel whose code is a header, and whose symbol is unique."""
    digest = hashlib.sha256(launch.key.encode()).hexdigest()
    vendor = "hip" if accelerator.kind == "hip" else "cuda"
    binary = elf_image(MACHINES[vendor], int(digest[:8], 16))
    kernel = DeviceKernel(
        name=f"{launch.source}.{digest[:16]}",
        entry=entry_name(binary, vendor),
        symbol=f"k_{digest[:16]}",
        warps=launch.warps,
        shared_bytes=0,
        parameters=launch.parameters,
        grid=launch.grid,
        dependent_launch=launch.dependent_launch,
        receipt=KernelReceipt(compiler="none", version="0", registers=1, spills=0),
    )
    return kernel, binary


def build_with(patch: pytest.MonkeyPatch, build: Build) -> None:
    """Have kernels made by this."""

    def many(launches: Sequence[Launch], accelerator: Accelerator, cache: str) -> list[Built]:
        found: list[Built] = []
        for launch in launches:
            try:
                found.append(build(launch, accelerator, cache))
            except ModelError:
                found.append(None)
        return found

    patch.setattr(device_section, "build", build)
    patch.setattr(device_section, "build_many", many)


@pytest.fixture(scope="module", params=["h200", "mi300x"])
def plan(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plan]:
    with pytest.MonkeyPatch.context() as patch:
        build_with(patch, headers_alone)
        path = compiled(tmp_path_factory.mktemp("plan"), request.param)
    with Plan.open(path) as opened:
        opened.verify_all()
        yield opened


def compiled(folder: Path, target: str, **changes: object) -> Path:
    (folder / "config.json").write_text(json.dumps(FAMILIES["llama"]))
    with context():
        options = CompileOptions(target=target, **{**OPTIONS, **changes})  # pyright: ignore[reportArgumentType]
        state = compile_model(open_model(folder / "config.json"), options, lambda *_: None)
    assert state.manifest is not None
    write_plan(folder / "plan.bin", state.manifest, state.entries)
    return folder / "plan.bin"


@pytest.fixture
def fake(plan: Plan, tmp_path: Path) -> Iterator[FakeDriver]:
    assert plan.manifest.device is not None
    library = build(tmp_path)
    library.reset(plan.manifest.device.vendor)
    for kernel in plan.manifest.device.kernels:
        library.declare(kernel.symbol, "".join(kind_of(item) for item in kernel.parameters))
    yield library
    assert library.problem == "" and library.held == 0


def kind_of(parameter: object) -> str:
    if isinstance(parameter, Pointer):
        return "p"
    return {"i32": "i", "i64": "l", "f32": "f"}[parameter.type] if isinstance(parameter, Constant) else "i"


def test_the_plan(plan: Plan) -> None:
    manifest, device = plan.manifest, plan.manifest.device
    assert device is not None and manifest.kernels is None
    assert device.graph_rows == (1, 2, 4, 6) and device.memory_bytes == 1 << 30
    assert manifest.memory.total <= device.memory_bytes < manifest.memory.total + manifest.kv.bytes_per_block
    assert {group.block_order for group in manifest.kv.groups} == {"head_major"}
    step, sample = plan.program("step"), plan.program("sample")
    assert [(bucket.rows, bucket.logit_rows) for bucket in step.buckets] == [(1, 1), (2, 2), (4, 4), (6, 6), (64, 6), (100, 6)]
    assert [bucket.rows for bucket in sample.buckets] == [1, 2, 4, 6]
    assert all(call.function.startswith("device.") and not call.attributes for call in (*step.calls, *sample.calls))
    assert len(manifest.goldens) == 1
    assert "triton" in manifest.provenance.libraries


def test_shares_of_attention_are_of_targets_that_were_measured(plan: Plan) -> None:
    performance = plan.manifest.performance
    known = "attention" in performance.rates
    assert known == (plan.manifest.target.name == "h200") == ("products" in performance.rates)
    assert all((row.attention_share < 1) == (row.attention_rows > 0) == known for row in performance.step_costs)
    few, many = performance.step_costs[0], performance.step_costs[-1]
    assert few.attention_share <= many.attention_share and few.attention_rows <= many.attention_rows


def test_steps_are_launched_as_the_plan_says(plan: Plan, fake: FakeDriver) -> None:
    """Every parameter is an address inside the arena or a number (the fake driver sees to it); decode steps are two graphs."""
    executor = load_executor(plan, "dummy", None, lambda _phase: None, driver=fake.driver())
    size, memory = plan.manifest.kv.block_tokens, plan.manifest.memory
    assert fake.device_bytes == arena_bytes(plan.manifest) + memory.workspace == memory.total - memory.overhead
    assert sum(line.startswith("begin capture") for line in fake.log()) == 8
    sampling = SamplingParameters(max_tokens=9, temperature=0.0)
    executor.admit(0, sampling, (), np.arange(3, dtype=np.int32), np.empty(0, np.int32))
    fake.clear_log()
    executor.run(fixed_batch([Rows(0, 0, [1, 2, 3])], 4, size))
    log = fake.log()
    assert sum(line.startswith("launch k_") for line in log) > 20 and sum(line.startswith("launch graph") for line in log) == 1
    fake.clear_log()
    executor.run(fixed_batch([Rows(0, 3, [-1]), Rows(1, 0, [4]), Rows(2, 0, [5])], 4, size))
    assert [line.split()[1] for line in fake.log() if line.startswith("launch")] == ["graph", "graph"]
    executor.close()


def test_keys_and_values_as_8_bit_floats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the bytes of a block, caches of that type in every call, and no such thing on CPUs."""
    build_with(monkeypatch, headers_alone)
    with Plan.open(compiled(tmp_path, "mi300x", kv_dtype="f8e4m3")) as plan:
        plan.verify_all()
        manifest = plan.manifest
        assert manifest.device is not None
        assert {group.dtype for group in manifest.kv.groups} == {"f8e4m3"}
        assert manifest.kv.bytes_per_block == sum(
            2 * len(group.layers) * manifest.kv.block_tokens * group.heads * group.head_dim for group in manifest.kv.groups
        )
        kinds = {kind for function in manifest.device.functions for kind in (*function.inputs, *function.outputs)}
        assert "f8e4m3" in kinds
        assert {"float8_attention.split", "float8_attention.chunks"} < {
            kernel.name.rpartition(".")[0] for kernel in manifest.device.kernels
        }
    with pytest.raises(UsageError, match="--kv-dtype"):
        compiled(tmp_path, "cpu-avx2", kv_dtype="f8e4m3")


def test_settings_read_the_same_in_every_process() -> None:
    """Templates name functions by them, and plans are reproducible."""
    limits = schedule(TrafficProfile(), 256, 6, 100)
    assert " at 0x" not in repr(device_setting(ACCELERATORS["h200"], limits, 64, 256))


def test_what_does_not_fit_is_done_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_small(launch: Launch, accelerator: Accelerator, cache: str) -> tuple[DeviceKernel, bytes]:
        if launch.warps > 4:
            raise ModelError("too large")
        return headers_alone(launch, accelerator, cache)

    build_with(monkeypatch, only_small)
    small = Launch("norms.small", {}, (), (1, 1, 1), 4)
    bucket = Bucket(rows=8, logit_rows=1, arena_bytes=0, offsets=())
    program = Program("step", 0, (), (), (Call("device.norm", (), (), {}, ""),), (bucket,))

    def made(launch: Launch) -> list[str]:
        template = FunctionTemplate("norm", (), (), lambda _: [(8, launch)])
        section, _ = device_section.device_section(ACCELERATORS["h200"], {"norm": template}, [program], (), 1)
        return [kernel.name.rpartition(".")[0] for kernel in section.kernels]

    large = replace(small, source="norms.large", warps=8)
    assert made(replace(large, otherwise=small)) == ["norms.small"]
    with pytest.raises(ModelError, match="too large"):
        made(large)


def test_too_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_with(monkeypatch, headers_alone)
    with pytest.raises(MemoryPlanError, match="does not fit"):
        compiled(tmp_path, "h200", memory=1 << 20)


@pytest.mark.parametrize("weights", ["dummy", "counter"])
def test_weights_in_blocks_are_packed_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str) -> None:
    build_with(monkeypatch, headers_alone)
    with Plan.open(compiled(tmp_path, "h200", quantize="int4")) as plan:
        plan.verify_all()
        manifest = plan.manifest
        assert manifest.device is not None
        packed = [weight for weight in manifest.weights if weight.prepack == "planes"]
        assert {weight.dtype for weight in packed} == {"q4_0", "q8_0"}
        packing = {item.name for item in manifest.device.functions if item.name.startswith("pack.")}
        assert packing == {f"pack.{kind}.{made}" for kind in ("f32", "bf16") for made in ("q8_0.c32", "q4_0.c64", "q4_0.c32")}
        library = build(tmp_path)
        library.reset("cuda")
        for kernel in manifest.device.kernels:
            library.declare(kernel.symbol, "".join(kind_of(item) for item in kernel.parameters))
        load_executor(plan, weights, None, lambda _phase: None, driver=library.driver()).close()
        symbols = {kernel.symbol for kernel in manifest.device.kernels if kernel.name.startswith("pack.")}
        launches = [line for line in library.log() if line.startswith("launch") and line.split()[1] in symbols]
        # made-up weights of equal shapes are copies of each other
        instances = sum(len(weight.layers) or 1 for weight in packed)
        assert len(launches) == (instances if weights == "counter" else len({(item.shape, item.dtype) for item in packed}))
        assert library.problem == "" and library.held == 0
