"""The same model, target and options give the same bytes, whatever the machine's home, locale, time zone or hash seed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from tokenspeed.compiler import pipeline, proof
from tokenspeed.compiler.cli import main
from tokenspeed.compiler.frontends.trace import trace
from tokenspeed.targets.cpu.build import find_compiler

from ..tiny_models import FAMILIES, build, save

COMMAND: click.Command = main
PLAIN = {"LANG": "C", "PYTHONHASHSEED": "1", "TZ": "UTC", "LC_ALL": "C"}
ANOTHER = {"LANG": "de_DE.UTF-8", "PYTHONHASHSEED": "77777", "TZ": "Asia/Tokyo", "OMP_NUM_THREADS": "1"}
BUILD_ONE_SOURCE = """
from pathlib import Path
from tokenspeed.targets.cpu.build import SOURCES, _object, find_compiler
from tokenspeed.targets.cpu.machines import CPU_MACHINES
flags = next(machine.compiler_flags for machine in CPU_MACHINES if machine.name == "cpu-avx2")
Path("made").write_bytes(_object(find_compiler(), SOURCES / "norms.cpp", flags))
"""


def _elsewhere(setting: dict[str, str], arguments: list[str], home: Path, made: str) -> bytes:
    """What a process of its own with an empty home leaves in the file `made`."""
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "PYTHONPATH", "VIRTUAL_ENV"}}
    home.mkdir()
    environment = {**kept, "HOME": str(home), **setting}
    done = subprocess.run([sys.executable, *arguments], cwd=home, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return (home / made).read_bytes()


def test_two_compiles_are_byte_identical(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One here, after whatever this process has compiled before, and one elsewhere."""
    model = save(build(FAMILIES["llama"]), tmp_path / "model")
    options = ["-o", "plan.bin", "--target", "cpu-avx2", "--kernels", "library"]
    monkeypatch.chdir(tmp_path)
    for room in (pipeline, proof):
        monkeypatch.setattr(room, "trace", trace)  # which tests of this folder remember
    done = CliRunner().invoke(COMMAND, [str(model), *options])
    assert done.exit_code == 0, done.output
    first = (tmp_path / "plan.bin").read_bytes()
    command = ["-m", "tokenspeed.compiler.cli", str(model), *options]
    assert first == _elsewhere(ANOTHER, command, tmp_path / "home", "plan.bin")
    assert str(tmp_path).encode() not in first, "a plan says nothing about the machine it was compiled on"


@pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler")
def test_two_builds_of_a_native_kernel_are_byte_identical(tmp_path: Path) -> None:
    first = _elsewhere(PLAIN, ["-c", BUILD_ONE_SOURCE], tmp_path / "home", "made")
    second = _elsewhere(ANOTHER, ["-c", BUILD_ONE_SOURCE], tmp_path / "another", "made")
    assert first == second
    assert str(tmp_path).encode() not in first, "an object says nothing about the machine it was built on"
