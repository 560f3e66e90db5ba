"""Loading a plan's kernels: sealed, hashed, self-contained; and what is refused."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenspeed.plans.errors import PlanError, TargetMismatch
from tokenspeed.runtime.native import library as loading
from tokenspeed.runtime.native.calls import CallList
from tokenspeed.runtime.native.library import NativeLibrary
from tokenspeed.runtime.native.team import ThreadTeam
from tokenspeed.targets.cpu.build import SOURCES, _object, build_library, find_compiler, kernel_names
from tokenspeed.targets.registry import find_target

from .calling import MACHINES, call, library, native, on_every_machine

MACHINE = next(reversed(MACHINES))


def code(machine: str = MACHINE) -> bytes:
    compiler = find_compiler()
    assert compiler is not None
    return build_library(compiler, MACHINES[machine].compiler_flags)


@on_every_machine
def test_the_library_needs_no_other_and_has_every_kernel(machine: str, tmp_path: Path) -> None:
    path = tmp_path / "kernels.so"
    path.write_bytes(code(machine))
    dynamic = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True).stdout
    symbols = subprocess.run(["nm", "-D", path], capture_output=True, text=True, check=True).stdout
    assert "NEEDED" not in dynamic and " U " not in symbols
    for name in kernel_names():
        assert library(machine).function(name).address


def test_the_same_sources_give_the_same_bytes() -> None:
    compiler = find_compiler()
    assert compiler is not None
    first = code()
    build_library.cache_clear()
    assert build_library(compiler, MACHINES[MACHINE].compiler_flags) == first


def test_code_that_was_changed_is_not_loaded() -> None:
    data = code()
    changed = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(PlanError, match="not those its manifest names"):
        NativeLibrary(changed, hashlib.sha256(data).hexdigest())


def test_bytes_that_are_no_library_are_refused() -> None:
    data = b"#!/bin/sh\n" * 100
    with pytest.raises(PlanError, match="cannot be loaded") as refused:
        NativeLibrary(data, hashlib.sha256(data).hexdigest())
    assert "--target" in refused.value.fix


def test_another_interface_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "ABI_VERSION", loading.ABI_VERSION + 1)
    data = code()
    with pytest.raises(PlanError, match="another version of the runtime"):
        NativeLibrary(data, hashlib.sha256(data).hexdigest())


class RefusedTiles:
    """A loaded library whose request for the tile registers the operating system refuses."""

    def __init__(self, loaded: ctypes.CDLL) -> None:
        self._loaded = loaded
        self._name, self._handle = loaded._name, loaded._handle

    def __getattr__(self, name: str) -> Any:
        if name == "ts_request_tiles":
            return ctypes.CFUNCTYPE(ctypes.c_int64)(lambda: -errno.EPERM)
        return getattr(self._loaded, name)


def test_a_system_that_lends_no_tile_registers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    load = loading._load_sealed
    monkeypatch.setattr(loading, "_load_sealed", lambda data, sha256: RefusedTiles(load(data, sha256)))
    data = code()
    with pytest.raises(TargetMismatch, match="tile registers") as refused:
        NativeLibrary(data, hashlib.sha256(data).hexdigest())
    assert refused.value.got == os.strerror(errno.EPERM) and refused.value.fix.endswith("--target cpu-avx512-bf16")


@on_every_machine
def test_only_code_that_uses_tiles_asks_for_them(machine: str) -> None:
    assert hasattr(library(machine).entry_points, "ts_request_tiles") == ("amx_tile" in MACHINES[machine].features)


def test_products_are_made_of_tiles_where_the_target_has_them(tmp_path: Path) -> None:
    """On any host: compiled and read, not run."""
    compiler, target = find_compiler(), find_target("cpu-avx512-amx")
    assert compiler is not None
    path = tmp_path / "linear.o"
    path.write_bytes(_object(compiler, SOURCES / "linear.cpp", target.compiler_flags))
    listing = subprocess.run(["objdump", "-d", path], capture_output=True, text=True, check=True).stdout
    assert all(word in listing for word in ("ldtilecfg", "tileloadd", "tdpbf16ps", "tilestored", "tilerelease", "vpdpbusd"))


def test_unknown_kernels_and_attributes_are_refused() -> None:
    x = torch.zeros(1, 8)
    with pytest.raises(PlanError, match="does not have: 'no_such_kernel'"):
        call(MACHINE, "no_such_kernel", [x], [x])
    for attributes in ({}, {"eps": 1e-5, "epsilon": 1.0}, {"eps": True}, {"eps": "small"}, {"eps": float("inf")}):
        with pytest.raises(PlanError, match="attributes that it does not take"):
            call(MACHINE, "rms_norm", [x, torch.ones(8)], [torch.zeros(1, 8)], **attributes)  # pyright: ignore[reportArgumentType]
    with pytest.raises(PlanError, match="attributes that it does not take"):
        call(MACHINE, "gated_activation", [x, x], [torch.zeros(1, 8)], activation="sine")


def test_what_a_kernel_cannot_run_is_refused_before_it_runs() -> None:
    calls = CallList(library(MACHINE))
    calls.add("rms_norm", [native(torch.zeros(2, 8)), native(torch.ones(9))], [native(torch.zeros(2, 8))], {"eps": 1e-5}, "norm")
    with pytest.raises(PlanError, match="rms_norm in a way it cannot run") as refused:
        calls.seal(1)
    assert refused.value.where == "norm" and "weight[features]" in refused.value.expected


def test_threads_share_work_and_end() -> None:
    x, out = torch.randn(64, 32), torch.zeros(64, 32)
    calls = CallList(library(MACHINE))
    for _ in range(20):
        calls.add("rms_norm", [native(x), native(torch.ones(32))], [native(out)], {"eps": 1e-6}, "norm")
    crew = ThreadTeam(library(MACHINE), 3, processors=None)
    crew.reserve(calls.seal(3))
    for _ in range(50):
        calls.run(crew)
    assert np.allclose(out.norm(dim=1).numpy(), 32**0.5, atol=1e-3)
    assert {name for name, _ in calls.run_timed(crew)} == {"rms_norm"}
    crew.close()


def test_pinned_threads_stay_on_their_cores() -> None:
    cores = sorted(os.sched_getaffinity(0))
    found: list[set[int]] = []

    def run() -> None:
        crew = ThreadTeam(library(MACHINE), 2, processors=cores)
        calls = CallList(library(MACHINE))
        calls.add("rms_norm", [native(torch.zeros(2, 8)), native(torch.ones(8))], [native(torch.zeros(2, 8))], {"eps": 1e-5}, "")
        crew.reserve(calls.seal(2))
        calls.run(crew)
        found.append(os.sched_getaffinity(0))
        found.append(os.sched_getaffinity(crew._workers[0].native_id or 0))
        crew.close()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [{cores[0]}, {cores[1 % len(cores)]}] and os.sched_getaffinity(0) == {*cores}


def test_fewer_rows_than_at_preparation_leave_the_rest_alone() -> None:
    x, out = torch.randn(8, 16), torch.full((8, 16), float("nan"))
    calls = CallList(library(MACHINE))
    described = [native(x), native(out)]
    follows = [type(item)(**{**vars(item), "symbol": "rows"}) for item in described]
    calls.add("rms_norm", [follows[0], native(torch.ones(16))], [follows[1]], {"eps": 1e-6}, "norm")
    crew = ThreadTeam(library(MACHINE), 2)
    crew.reserve(calls.seal(2))
    calls.resize(3, 0)
    calls.run(crew)
    crew.close()
    assert out[:3].isfinite().all() and out[3:].isnan().all()
