"""tokenspeed-run refuses early, with an exit code and no stack trace."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tokenspeed.plans.schema import Target
from tokenspeed.runtime import run_cli
from tokenspeed.runtime.startup_clock import StartupClock, process_age

from ..plans.sample_plan import write_sample_plan
from .entrypoint.tiny_tokenizers import byte_level

ANY_HOST = Target(name="cpu-any", kind="cpu", features=(), row_padding="exact")


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    write_sample_plan(tmp_path / "plan.bin", target=ANY_HOST, entries={"tokenizer/tokenizer.json": byte_level()})
    return tmp_path / "plan.bin"


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(run_cli.main, [str(argument) for argument in arguments])
    assert "Traceback" not in result.output
    return result


def test_help_names_what_matters() -> None:
    text = run("--help").output
    for option in ("--weights", "--verify", "--prompt", "--chat", "--host", "--port", "--api-key", "--drain-timeout", "--json"):
        assert option in text


def test_a_missing_plan(tmp_path: Path) -> None:
    result = run(tmp_path / "nothing.bin")
    assert result.exit_code == 3 and "nothing.bin" in result.stderr and "fix:" in result.stderr


def test_a_missing_plan_as_json(tmp_path: Path) -> None:
    result = run(tmp_path / "nothing.bin", "--json")
    assert result.exit_code == 3 and json.loads(result.stderr)["error"] == "PlanError"


def test_prompt_and_chat_exclude_each_other(plan: Path) -> None:
    assert run(plan, "--prompt", "x", "--chat").exit_code == 2


def test_kv_on_disk_that_is_not_possible_is_refused_at_once(plan: Path, tmp_path: Path) -> None:
    for arguments, words in (
        (("--disk-kv", tmp_path, "--disk-kv-bytes", "1GiB"), ("--disk-kv", "fix:", "serve without")),
        (("--disk-kv-bytes", "1GiB"), ("--disk-kv-bytes", "give --disk-kv FOLDER")),
        (("--disk-kv", tmp_path, "--disk-kv-bytes", "much"), ("--disk-kv-bytes", "a number with a unit")),
    ):
        result = run(plan, *arguments)
        assert result.exit_code == 2 and all(word in result.stderr for word in words)


def test_ray_must_be_there(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = run(plan, "--ray")
    assert result.exit_code == 2 and "Ray is not installed" in result.stderr and "tokenspeed-compile[ray]" in result.stderr
    assert run(plan, "--ray", "--chat").exit_code == 2


def test_another_machine_is_refused(tmp_path: Path) -> None:
    target = Target(name="cpu-moon", kind="cpu", features=("no_such_feature",), row_padding="exact")
    write_sample_plan(tmp_path / "plan.bin", target=target)
    result = run(tmp_path / "plan.bin")
    assert result.exit_code == 4 and "no_such_feature" in result.stderr


def test_a_signature_can_be_required(plan: Path) -> None:
    assert run(plan, "--require-signature").exit_code == 3


def test_a_taken_port_is_said_so(plan: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run(plan, "--port", port)
    assert result.exit_code == 2 and f"port {port} is taken" in result.stderr and "--port" in result.stderr


def test_an_address_that_is_not_ours(plan: Path) -> None:
    result = run(plan, "--host", "203.0.113.1")
    assert result.exit_code == 2 and "203.0.113.1" in result.stderr


def test_an_engine_that_cannot_start_ends_the_command(plan: Path, tmp_path: Path) -> None:
    result = run(plan, "--prompt", "hello", "--weights", tmp_path / "no weights")
    assert result.exit_code in (3, 5), result.output
    assert "fix:" in result.stderr or "where:" in result.stderr


def test_a_broken_tokenizer_ends_the_command(tmp_path: Path) -> None:
    write_sample_plan(tmp_path / "plan.bin", target=ANY_HOST)
    result = run(tmp_path / "plan.bin", "--prompt", "hello")
    assert result.exit_code == 3 and "tokenizer" in result.stderr


def test_an_unknown_tool_parser_is_answered_with_the_known_ones(plan: Path) -> None:
    result = run(plan, "--tool-parser", "hermit")
    assert result.exit_code == 2 and all(name in result.stderr for name in ("--tool-parser", "hermit", "auto", "none", "hermes"))


@pytest.mark.parametrize("option", [("--keys-file", "nothing"), ("--service-tier", "priority=soon"), ("--without", "sense")])
def test_options_that_are_not_understood(plan: Path, option: tuple[str, str]) -> None:
    result = run(plan, *option)
    assert result.exit_code == 2 and option[0] in result.stderr


def test_what_was_asked_for_is_said_again_for_a_rank_elsewhere() -> None:
    words = ["--service-tier", "a=1", "--service-tier", "b=2", "--no-overlap", "--port", "0"]
    context = run_cli.main.make_context("tokenspeed-run", ["/plan.bin", *words, "--api-key", "secret"])
    assert sorted(run_cli._arguments(context)) == sorted(["/plan.bin", *words])


def test_startup_phases_follow_each_other() -> None:
    clock = StartupClock()
    clock.finish("imports")
    clock.finish("checks")
    clock.finish("imports")
    assert list(clock.phases) == ["imports", "checks"]
    assert clock.phases["imports"] >= 0.9 * process_age()
    assert sum(clock.phases.values()) == pytest.approx(clock.total, abs=0.1)
