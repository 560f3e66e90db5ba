"""The same model, target and options give the same bytes, whatever the machine's home, locale, time zone or hash seed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ..tiny_models import FAMILIES, build, save

SETTINGS = (
    {"LANG": "C", "PYTHONHASHSEED": "1", "TZ": "UTC", "LC_ALL": "C"},
    {"LANG": "de_DE.UTF-8", "PYTHONHASHSEED": "77777", "TZ": "Asia/Tokyo", "OMP_NUM_THREADS": "1"},
)


def test_two_compiles_are_byte_identical(tmp_path: Path) -> None:
    model = save(build(FAMILIES["llama"]), tmp_path / "model")
    command = [sys.executable, "-m", "tokenspeed.compiler.cli", str(model), "-o", "plan.bin", "--target", "cpu-avx2"]
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "PYTHONPATH", "VIRTUAL_ENV"}}
    running = []
    for number, setting in enumerate(SETTINGS):
        home = tmp_path / f"home{number}"
        home.mkdir()
        environment = {**kept, "HOME": str(home), **setting}
        running.append(subprocess.Popen(command, cwd=home, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    for process in running:
        output, _ = process.communicate()
        assert process.returncode == 0, output.decode()
    plans = [(tmp_path / f"home{number}" / "plan.bin").read_bytes() for number in range(len(SETTINGS))]
    assert plans[0] == plans[1]
    assert str(tmp_path).encode() not in plans[0], "a plan says nothing about the machine it was compiled on"
