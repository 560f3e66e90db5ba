"""tokenspeed-plan from the outside: output, exit codes, errors without traces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from tokenspeed.plans.command import run_command
from tokenspeed.plans.errors import MemoryPlanError
from tokenspeed.plans.reader import Plan
from tokenspeed.runtime import host, plan_cli
from tokenspeed.tests.plans import tamper
from tokenspeed.tests.plans.sample_plan import sample_manifest, write_sample_plan


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    write_sample_plan(tmp_path / "plan.bin")
    return tmp_path / "plan.bin"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(plan_cli.main, [str(argument) for argument in arguments])


@dataclass
class FakeResult:
    name: str
    passed: bool
    max_error: float
    tolerance: float


def install_module(monkeypatch: pytest.MonkeyPatch, name: str, **contents: object) -> None:
    module = types.ModuleType(name)
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, name, module)


def install_goldens(monkeypatch: pytest.MonkeyPatch, passed: bool) -> list[tuple[str, str | None]]:
    """Stand-ins for the executor and for this machine's instruction set; the command's own work is what is tested."""
    calls: list[tuple[str, str | None]] = []

    def replay(plan: Plan, weights: str | None, report: Callable[[str], None]) -> list[FakeResult]:
        calls.append((plan.plan_id, weights))
        report("replaying")
        return [FakeResult("layer", passed, 1e-6, 1e-5)]

    install_module(monkeypatch, "tokenspeed.runtime.goldens", replay_goldens=replay)
    monkeypatch.setattr(host, "host_features", lambda: frozenset({"avx2", "fma"}))
    return calls


def test_inspect(plan: Path) -> None:
    assert "sample-model for cpu-avx2" in run("inspect", plan).stdout
    data = json.loads(run("inspect", plan, "--json").stdout)
    assert data["memory"]["total"] == sample_manifest().memory.total


def test_explain(plan: Path, tmp_path: Path) -> None:
    text = run("explain", plan).stdout
    assert "least predicted time" in text and "Prefix reuse: on" in text
    data = json.loads(run("explain", plan, "--json", "--operation", "attention").stdout)
    assert {item["kernel"] for item in data["decisions"]} == {"packed", "tiled"}
    assert data["prefix_reuse"] == "on"
    write_sample_plan(tmp_path / "bare.bin", entries={"decisions.json": None})
    assert "no decisions" in run("explain", tmp_path / "bare.bin").stdout


def test_diff_exit_codes(plan: Path, tmp_path: Path) -> None:
    same = run("diff", plan, plan)
    assert (same.exit_code, same.stdout) == (0, "The plans are the same.\n")
    assert json.loads(run("diff", plan, plan, "--json").stdout) == []
    write_sample_plan(tmp_path / "other.bin", minimum_runtime="0.0.9")
    other = run("diff", plan, tmp_path / "other.bin")
    assert other.exit_code == 1 and "minimum_runtime" in other.stdout
    (change,) = json.loads(run("diff", plan, tmp_path / "other.bin", "--json").stdout)
    assert (change["where"], change["before"], change["after"]) == ("minimum_runtime", "0.1.0", "0.0.9")


def test_verify_replays_goldens(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = install_goldens(monkeypatch, passed=True)
    done = run("verify", plan, "--weights", "dummy")
    assert done.exit_code == 0, done.output
    assert "8 entries sound" in done.stdout and "golden layer: passed" in done.stdout
    assert calls[0][1] == "dummy"
    data = json.loads(run("verify", plan, "--json").stdout)
    assert data["passed"] and data["goldens"][0]["name"] == "layer" and data["entries"] == 8


def test_verify_fails_with_a_golden(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_goldens(monkeypatch, passed=False)
    done = run("verify", plan)
    assert done.exit_code == 1 and "FAILED" in done.stdout
    done = run("verify", plan, "--json")
    assert done.exit_code == 1 and json.loads(done.stdout)["passed"] is False


def test_verify_without_replay_needs_no_target(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_goldens(monkeypatch, passed=False)
    monkeypatch.setattr(host, "host_features", lambda: frozenset())
    assert run("verify", plan, "--no-replay").exit_code == 0
    refused = run("verify", plan)
    assert refused.exit_code == 4 and "without avx2 fma" in refused.stderr


def test_verify_finds_a_flipped_byte(plan: Path) -> None:
    at = next(member.data_offset for member in tamper.members_of(plan.read_bytes()) if member.name == "ir/model.mlir")
    damaged = tamper.apply(plan, tamper.flipped(at))
    done = run("verify", damaged, "--no-replay", "--json")
    assert done.exit_code == 3
    error = json.loads(done.stderr)
    assert error["error"] == "PlanError" and error["where"] == "ir/model.mlir, sha256" and error["fix"]


def test_sign_and_verify(plan: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    assert run("keygen", "--key", key).exit_code == 0
    assert run("keygen", "--key", key).exit_code == 2
    unsigned = run("verify", plan, "--no-replay", "--trust-store", f"{key}.pub")
    assert unsigned.exit_code == 3 and "not signed" in unsigned.stderr
    assert run("sign", plan, "--key", key).exit_code == 0
    assert run("verify", plan, "--no-replay", "--trust-store", f"{key}.pub", "--require-signature").exit_code == 0
    assert run("verify", plan, "--no-replay", "--require-signature").exit_code == 3


def test_bind(plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Checkpoint:
        def __init__(self) -> None:
            self.tensors = {source.name: source for source in sample_manifest().sources}

        def read(self, name: str) -> memoryview:
            return memoryview(bytes(self.tensors[name].bytes))

    install_module(monkeypatch, "tokenspeed.plans.checkpoint", open_checkpoint=lambda path: Checkpoint())
    done = run("bind", plan, "--weights", tmp_path, "-o", tmp_path / "bound.bin", "--json")
    assert done.exit_code == 0, done.output
    with Plan.open(tmp_path / "bound.bin") as bound:
        assert json.loads(done.stdout)["plan_id"] == bound.plan_id
        assert all(source.digest for source in bound.manifest.sources)


def test_errors_are_text_or_json_without_a_trace(tmp_path: Path) -> None:
    done = run("inspect", tmp_path / "absent.bin")
    assert done.exit_code == 3 and done.stdout == ""
    assert done.stderr.startswith("The plan cannot be opened.\n  where:") and "Traceback" not in done.stderr
    assert json.loads(run("inspect", tmp_path / "absent.bin", "--json").stderr)["error"] == "PlanError"
    assert run("inspect").exit_code == 2


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (MemoryPlanError("Too large.", fix="shrink\x1b[2J"), 7, "Too large.\n  fix:      shrink\\x1b[2J\n"),
        (KeyboardInterrupt(), 130, ""),
        (FileNotFoundError(2, "No such file", "weights.bin"), 74, "error: weights.bin: No such file\n"),
        (RuntimeError("odd\nthing"), 70, "internal error: RuntimeError: odd thing (set TOKENSPEED_TRACEBACK=1 to see where)\n"),
        (click.UsageError("bad option"), 2, "Usage: command [OPTIONS]\nTry 'command --help' for help.\n\nError: bad option\n"),
    ],
)
def test_run_command(error: BaseException, code: int, text: str) -> None:
    @click.command()
    @run_command
    def command() -> None:
        raise error

    done = CliRunner().invoke(command)
    assert (done.exit_code, done.stderr) == (code, text)


def test_traces_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    @run_command
    def command() -> None:
        raise RuntimeError("odd")

    monkeypatch.setenv("TOKENSPEED_TRACEBACK", "1")
    assert "Traceback" in CliRunner().invoke(command).stderr


def test_a_reader_that_goes_away_is_no_error(plan: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    program = "from tokenspeed.runtime.plan_cli import main; main()"
    arguments = [sys.executable, "-c", program, "inspect", str(plan)]
    done = subprocess.run(arguments, stdout=write_end, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (141, "")


def test_looking_at_plans_loads_neither_torch_nor_numpy(plan: Path) -> None:
    code = f"""
import sys
from tokenspeed.runtime.plan_cli import main
for command in (["inspect", {str(plan)!r}], ["explain", {str(plan)!r}], ["verify", "--no-replay", {str(plan)!r}]):
    main(command, standalone_mode=False)
print([name for name in ("torch", "numpy", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
