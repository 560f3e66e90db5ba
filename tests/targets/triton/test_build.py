"""Kernels are built for devices that are not here, and refused where they do not fit."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tokenspeed.plans.device_integrity import check_binary
from tokenspeed.plans.device_kernels import Computed, Constant, Parameter, Pointer
from tokenspeed.plans.device_limits import LIMITS
from tokenspeed.plans.errors import ModelError, UsageError
from tokenspeed.targets.registry import ACCELERATORS
from tokenspeed.targets.triton import build_many as build_many_module
from tokenspeed.targets.triton.build import build, compiled, require_triton
from tokenspeed.targets.triton.build_many import Built, build_many
from tokenspeed.targets.triton.kernel import Constexpr, Launch
from tokenspeed.targets.triton.linear import OF_FILES
from tokenspeed.targets.triton.measured_tiles import LinearTiles, Way

PARAMETERS: tuple[Parameter, ...] = (
    *(Pointer(at, "bf16", 16) for at in range(3)),
    Computed("rows"),
    *(Constant("i32", size) for size in (256, 128, 128)),
)


def product() -> Launch:
    """A tile of a linear layer, as small as every device's matrix instructions take it."""
    constants: dict[str, Constexpr] = {"BLOCK_R": 64, "BLOCK_N": 64, "BLOCK_K": 64, "GROUP": 8, "STAGES": 2}
    constants |= {"bias": None, "WHOLE": True, "DEPENDENT": False}
    return Launch("linear.many_rows", constants, PARAMETERS, (2, 1, 1), 4, 2)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Built anew: what the user's own cache holds would be no test."""
    return str(tmp_path_factory.mktemp("triton"))


@pytest.mark.parametrize(
    ("target", "stage", "instruction"),
    [
        ("a100", "ptx", "mma.sync.aligned.m16n8k16"),
        ("h200", "ptx", "wgmma.mma_async"),
        ("b200", "ptx", "tcgen05.mma"),
        ("mi300x", "amdgcn", "v_mfma_f32_32x32x8_bf16"),
        ("mi355x", "amdgcn", "v_mfma_f32_"),
    ],
)
def test_products_use_the_devices_matrix_instructions(target: str, stage: str, instruction: str, cache: str) -> None:
    accelerator = ACCELERATORS[target]
    kernel, binary = build(product(), accelerator, cache)
    check_binary(kernel, accelerator.kind, binary)
    assert kernel.receipt.spills == 0 < kernel.receipt.registers
    assert kernel.parameters == PARAMETERS
    assert instruction in compiled(product(), accelerator, cache).asm[stage]


@pytest.mark.parametrize(
    ("way", "columns", "instruction"),
    [("few_rows_shared", 32, "mma.sync.aligned.m16n8k16"), ("few_rows_ahead", 64, "wgmma.mma_async")],
)
def test_weights_are_asked_for_before_the_kernel_ahead_has_ended(way: Way, columns: int, instruction: str, cache: str) -> None:
    tiles = LinearTiles(way=way, rows=16, columns=columns, inner=256, warps=4, stages=3)
    constants: dict[str, Constexpr] = {"BLOCK_R": tiles.rows, "BLOCK_N": tiles.columns, "BLOCK_K": tiles.inner}
    constants |= {"STAGES": tiles.stages, "bias": None, "KIND": None, "DEPENDENT": True}
    launch = Launch(f"{OF_FILES[way]}.{way}", constants, PARAMETERS, (4, 1, 1), 4, 3, True)
    code: str = compiled(launch, ACCELERATORS["h200"], cache).asm["ptx"]
    before, after = code.split("griddepcontrol.wait", 1)
    assert "griddepcontrol.launch_dependents" in before and "cp.async.cg" in before and instruction in after
    assert build(launch, ACCELERATORS["h200"], cache)[0].receipt.spills == 0


@pytest.mark.parametrize("shares", [1, 4])
def test_chunks_on_hopper_have_warps_with_roles_of_their_own(cache: str, shares: int) -> None:
    """Two groups of four that multiply, and one that copies; numbers are compared on a device."""
    sizes: dict[str, Constexpr] = {"HEADS": 4, "KV_HEADS": 1, "TOKENS": 64, "TABLE": 8, "D": 64, "Q_ROW": 384, "Q_HEAD": 64}
    scores: dict[str, Constexpr] = {"SCALE": 0.125, "SOFTCAP": 0.0, "WINDOW": 0, "sinks": None}
    tiles: dict[str, Constexpr] = {"SEQUENCES": 8, "BLOCK_Q": 32, "BLOCK_H": 4, "BLOCK_T": 64, "STAGES": 2, "UNITS": 132}
    tiles["SHARES"] = shares
    parameters = (*(Pointer(at, "bf16", 16) for at in range(3)), *(Pointer(at, "i32", 16) for at in range(3, 7)))
    parameters = (*parameters, Pointer(7, "bf16", 16), Pointer(8, "f32", 16), Pointer(9, "f32", 16))
    launch = Launch("hopper_attention.chunks", sizes | scores | tiles, parameters, (132, 1, 1), 4, 2)
    kernel, _ = build(launch, ACCELERATORS["h200"], cache)
    code: str = compiled(launch, ACCELERATORS["h200"], cache).asm["ptx"]
    assert kernel.warps == 12 and kernel.receipt.spills == 0
    assert all(part in code for part in ("wgmma.mma_async", "setmaxnreg", "cp.async.bulk.tensor"))


@pytest.mark.parametrize("target", ["h200", "b200", "a100"])
def test_shares_of_wide_latents_are_put_together_in_registers(cache: str, target: str) -> None:
    constants: dict[str, Constexpr] = {"HEADS": 16, "D": 512, "BLOCK_S": 32, "BLOCK_D": 512, "DECODING": True}
    constants |= {"sinks": None, "DEPENDENT": False}
    parameters = (Pointer(0, "f32", 16), Pointer(1, "f32", 16), Pointer(2, "i32", 16), Pointer(3, "bf16", 16), Constant("i32", 8))
    launch = Launch("attention.merge_rows", constants, parameters, ("rows", 16, 1), 8)
    assert build(launch, ACCELERATORS[target], cache)[0].receipt.spills == 0


def test_launches_that_differ_in_numbers_share_their_code(cache: str) -> None:
    first = product()
    other = replace(first, parameters=(*PARAMETERS[:4], *(Constant("i32", size) for size in (512, 256, 256))))
    one, two = (build(launch, ACCELERATORS["h200"], cache)[0] for launch in (first, other))
    assert one.entry == two.entry and one.name != two.name


def test_the_same_bytes_from_another_cache(cache: str, tmp_path: Path) -> None:
    accelerator = ACCELERATORS["h200"]
    assert build(product(), accelerator, cache) == build(product(), accelerator, str(tmp_path))


def test_too_much_shared_memory_is_refused(cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LIMITS, "sm_90a", replace(LIMITS["sm_90a"], shared_bytes=1000))
    with pytest.raises(ModelError, match="1000 bytes of shared memory"):
        build(product(), ACCELERATORS["h200"], cache)


def test_without_triton_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(UsageError, match="pip install triton==3"):
        require_triton()


def test_what_is_built_is_the_same_by_any_number_of_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, what does not fit left out; by this process alone where another one fails."""
    deep = replace(product(), constants=dict(product().constants) | {"STAGES": 16}, stages=16)
    launches = [product(), deep, replace(product(), grid=(4, 1, 1))]

    def built(name: str, processes: int) -> list[Built]:
        return build_many(launches, ACCELERATORS["a100"], str(tmp_path / name), processes)

    alone = built("alone", 1)
    assert [item is None for item in alone] == [False, True, False]
    assert built("beside", 2) == alone
    assert any((tmp_path / "beside").iterdir())
    monkeypatch.setattr(build_many_module, "_WORKER", "raise SystemExit(3)")
    assert built("alone", 3) == alone
