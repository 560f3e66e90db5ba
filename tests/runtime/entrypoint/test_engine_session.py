"""The real engine process as seen from the entrypoint: how it starts, fails and ends."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tokenspeed.runtime.entrypoint.engine_client import EngineClient, Sockets
from tokenspeed.runtime.entrypoint.engine_session import EngineError, EngineProcess, engine_session
from tokenspeed.runtime.protocol import EngineFailed

from ...plans.sample_plan import write_sample_plan


def failure_of(plan: Path, plan_id: str, *, kill: bool = False) -> EngineFailed:
    """What the entrypoint learns from an engine that cannot start."""
    options = {"plan": str(plan), "plan_id": plan_id, "weights": None, "threads": 1, "pin_threads": False}
    options |= {"overlap": True, "verify": False, "step_timeout": 60.0, "policy": "plain", "without": ["swap"]}
    options |= {"tenant_weights": {"ours": 2.0}}

    async def run() -> EngineFailed:
        sockets = Sockets()
        assert sockets.directory.stat().st_mode & 0o777 == 0o700
        process = EngineProcess(sockets, options)
        client = EngineClient(sockets)
        async with engine_session(client, process):
            if kill:
                process.kill()
            await asyncio.wait_for(client.wait_ready(), 60)
        sockets.close()
        assert not sockets.directory.exists()
        assert client.failure is not None and not client.ready
        return client.failure

    return asyncio.run(run())


def test_an_engines_own_error_keeps_its_fields(tmp_path: Path) -> None:
    error = EngineError(failure_of(tmp_path / "nothing.bin", "0" * 64))
    assert error.exit_code == 3
    assert error.what == "The plan cannot be opened." and "nothing.bin" in error.where and error.fix


def test_a_plan_changed_after_the_check_is_refused(tmp_path: Path) -> None:
    write_sample_plan(tmp_path / "plan.bin")
    error = EngineError(failure_of(tmp_path / "plan.bin", "0" * 64))
    assert error.exit_code == 3 and "changed" in error.what


def test_a_killed_engine_is_noticed(tmp_path: Path) -> None:
    failure = failure_of(tmp_path / "nothing.bin", "0" * 64, kill=True)
    assert "signal 9" in failure.message and failure.exit_code == 1


def test_the_engine_ends_with_its_parent() -> None:
    code = """
from tokenspeed.runtime import engine_process
engine_process.exit_with_parent()
print("on", flush=True)
engine_process.threading.Event().wait()
"""
    process = subprocess.Popen([sys.executable, "-P", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == b"on\n"
    process.stdin.close()
    assert process.wait(10) == 1
    process.stdout.close()


def test_the_entrypoint_never_imports_torch() -> None:
    code = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "triton", "jax", "torch_mlir"):
            raise ImportError(f"{name} is not for the entrypoint")
sys.meta_path.insert(0, Blocker())
from tokenspeed.runtime import run_cli
from tokenspeed.runtime.entrypoint import launch, http_server, terminal
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_long_temporary_directory_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    sockets = Sockets()
    assert len(os.fsencode(sockets.commands)) < 107
    sockets.close()
    assert list(deep.iterdir()) == []


def test_time_is_not_lost_when_the_engine_never_got_ready(tmp_path: Path) -> None:
    start = time.monotonic()
    failure_of(tmp_path / "nothing.bin", "0" * 64, kill=True)
    assert time.monotonic() - start < 5
