"""The same model, target and options give the same bytes, whatever the machine's home, locale, time zone or hash seed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tokenspeed.targets.cpu.build import find_compiler

from ..tiny_models import FAMILIES, build, save

SETTINGS = (
    {"LANG": "C", "PYTHONHASHSEED": "1", "TZ": "UTC", "LC_ALL": "C"},
    {"LANG": "de_DE.UTF-8", "PYTHONHASHSEED": "77777", "TZ": "Asia/Tokyo", "OMP_NUM_THREADS": "1"},
)
BUILD_ONE_SOURCE = """
from pathlib import Path
from tokenspeed.targets.cpu.build import SOURCES, _object, find_compiler
from tokenspeed.targets.cpu.machines import CPU_MACHINES
flags = next(machine.compiler_flags for machine in CPU_MACHINES if machine.name == "cpu-avx2")
Path("made").write_bytes(_object(find_compiler(), SOURCES / "norms.cpp", flags))
"""


def _in_each_setting(arguments: list[str], tmp_path: Path, made: str) -> list[bytes]:
    """What two runs with empty homes, side by side, leave in the file `made`."""
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "PYTHONPATH", "VIRTUAL_ENV"}}
    homes, running = [tmp_path / f"home{number}" for number in range(len(SETTINGS))], []
    for home, setting in zip(homes, SETTINGS, strict=True):
        home.mkdir()
        environment = {**kept, "HOME": str(home), **setting}
        command = [sys.executable, *arguments]
        running.append(subprocess.Popen(command, cwd=home, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    for process in running:
        output, _ = process.communicate()
        assert process.returncode == 0, output.decode()
    return [(home / made).read_bytes() for home in homes]


def test_two_compiles_are_byte_identical(tmp_path: Path) -> None:
    model = save(build(FAMILIES["llama"]), tmp_path / "model")
    options = ["-o", "plan.bin", "--target", "cpu-avx2", "--kernels", "library"]
    first, second = _in_each_setting(["-m", "tokenspeed.compiler.cli", str(model), *options], tmp_path, "plan.bin")
    assert first == second
    assert str(tmp_path).encode() not in first, "a plan says nothing about the machine it was compiled on"


@pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler")
def test_two_builds_of_a_native_kernel_are_byte_identical(tmp_path: Path) -> None:
    first, second = _in_each_setting(["-c", BUILD_ONE_SOURCE], tmp_path, "made")
    assert first == second
    assert str(tmp_path).encode() not in first, "an object says nothing about the machine it was built on"
