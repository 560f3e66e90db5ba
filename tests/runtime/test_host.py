"""Refusing a plan for another machine."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tokenspeed.plans.errors import MemoryPlanError, TargetMismatch
from tokenspeed.plans.schema import MeshAxis
from tokenspeed.runtime.host import check_host, host_features, host_memory_bytes
from tokenspeed.targets.registry import find_target
from tokenspeed.tests.plans.sample_plan import sample_manifest

FEATURES = frozenset({"avx2", "fma", "sse2"})


def test_a_fitting_host() -> None:
    check_host(sample_manifest(), features=FEATURES, memory_bytes=1 << 30)


def test_missing_instructions_are_named() -> None:
    with pytest.raises(TargetMismatch) as caught:
        check_host(sample_manifest(), features=frozenset({"avx2"}), memory_bytes=1 << 30)
    assert caught.value.where == "target.features"
    assert caught.value.got.endswith("without fma")
    assert caught.value.fix.startswith("tokenspeed-compile sample-model --target cpu")


def test_a_plan_of_tile_kernels_is_refused_without_the_tiles() -> None:
    machine = find_target("cpu-avx512-amx")
    target = msgspec.structs.replace(sample_manifest().target, name=machine.name, features=machine.features)
    lacking = frozenset(machine.features) - {"amx_tile", "amx_bf16", "amx_int8"}
    with pytest.raises(TargetMismatch) as caught:
        check_host(sample_manifest(target=target), features=lacking, memory_bytes=1 << 30)
    assert caught.value.got.endswith("without amx_tile amx_bf16 amx_int8")


def test_another_kind_of_device() -> None:
    target = msgspec.structs.replace(sample_manifest().target, kind="nvidia")
    with pytest.raises(TargetMismatch, match="nvidia"):
        check_host(sample_manifest(target=target), features=FEATURES, memory_bytes=1 << 30)


def test_the_memory_of_all_ranks_on_this_host_counts() -> None:
    manifest = sample_manifest(mesh=(MeshAxis(name="tp", size=8),))
    total = manifest.memory.total
    check_host(manifest, features=FEATURES, memory_bytes=8 * total)
    with pytest.raises(MemoryPlanError, match=r"needs 1\.00 KiB more"):
        check_host(manifest, features=FEATURES, memory_bytes=8 * total - 1024)


def test_too_little_memory_says_by_how_much() -> None:
    total = sample_manifest().memory.total
    check_host(sample_manifest(), features=FEATURES, memory_bytes=total)
    with pytest.raises(MemoryPlanError, match=r"needs 1\.00 KiB more"):
        check_host(sample_manifest(), features=FEATURES, memory_bytes=total - 1024)


def test_features_are_those_of_every_core(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nflags\t\t: fpu avx2 amx_bf16\n\nprocessor\t: 1\nflags\t\t: fpu avx2\n")
    assert host_features(info) == {"fpu", "avx2"}
    info.write_text("Features\t: fp asimd sve\n")
    assert host_features(info) == {"fp", "asimd", "sve"}
    info.write_text("nothing here\n")
    assert len(host_features(info)) == 1
    assert len(host_features(tmp_path / "absent")) == 1


def test_this_machine_has_some() -> None:
    assert host_features() and host_memory_bytes() > 1 << 20
