"""The block types are checked statically: pyright refuses every use of a block in a wrong state."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).with_name("wrong_state.py.txt")
REPOSITORY = Path(__file__).parents[3]


def test_pyright_refuses_exactly_the_wrong_lines(tmp_path: Path):
    pytest.importorskip("pyright")
    (tmp_path / "typed").mkdir()
    (tmp_path / "typed" / "tokenspeed").symlink_to(REPOSITORY)
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"extraPaths": ["typed"], "include": ["wrong_state.py"]}))
    text = EXAMPLE.read_text()
    (tmp_path / "wrong_state.py").write_text(text)
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)["generalDiagnostics"]
    refused = {item["range"]["start"]["line"] for item in found if item["severity"] == "error"}
    wrong = {number for number, line in enumerate(text.splitlines()) if line.endswith("# wrong")}
    assert len(wrong) == 61
    assert refused == wrong, [item["message"] for item in found]
