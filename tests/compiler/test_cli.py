"""tokenspeed-compile as a user meets it: what each phase prints, the files it leaves, and errors without a trace."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tokenspeed.compiler.cli import PHASES, main
from tokenspeed.compiler.pipeline import PHASES as PIPELINE
from tokenspeed.compiler.target_list import print_targets
from tokenspeed.ir import module
from tokenspeed.plans.errors import UsageError
from tokenspeed.plans.reader import Plan
from tokenspeed.plans.units import parse_bytes
from tokenspeed.targets.machine import State
from tokenspeed.targets.registry import ACCELERATORS, TARGETS

from ..tiny_models import FAMILIES, family_config

COMMAND: click.Command = main


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.json"
    path.write_text(json.dumps(family_config("llama")))
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(COMMAND, ["--target", "cpu-avx2", *map(str, arguments)])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def test_phases_are_the_pipelines() -> None:
    assert tuple(name for name, _ in PIPELINE) == PHASES


WORDS = {
    "import": "tokenspeed.attention",
    "raise": "ts.rms_norm",
    "partition": 'tp = "replicate"',
    "fuse": "ts.rope_kv_write",
    "select": 'kernel = "native.linear"',
    "quantize": "ts.rope_kv_write",
    "split": "ts.rope_kv_write",
}


@pytest.mark.parametrize("phase", PHASES)
def test_stopping_after_a_phase_prints_it(phase: str, config: Path, folder: Path) -> None:
    result = run(config, "--stop-after", phase)
    assert result.exit_code == 0, result.stderr
    if phase in WORDS:
        assert WORDS[phase] in result.stdout
        with module.context():
            assert str(module.parse(result.stdout)).strip() == result.stdout.strip()
    elif phase != "emit":
        program = json.loads(result.stdout)
        assert program["name"] == "step" and bool(program["buckets"]) == (phase == "allocate")
    assert (folder / "plan.bin").exists() == (phase == "emit")


def test_a_compile_leaves_a_plan_ir_files_and_a_summary(config: Path, folder: Path) -> None:
    result = run(config, "-o", "out.bin", "--dump-ir", "ir", "--json", "--max-sequences", 3, "--max-context", 100)
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in (folder / "ir").iterdir()) == [f"{n:02}-{name}.mlir" for n, name in enumerate(PHASES, 1)]
    summary = json.loads(result.stdout)
    with Plan.open(folder / "out.bin") as plan:
        manifest = plan.manifest
        assert summary["plan_id"] == plan.plan_id and summary["bytes"] == (folder / "out.bin").stat().st_size
        assert summary["memory_bytes"] == manifest.memory.total
        assert (manifest.model.max_context, manifest.schedule.max_sequences) == (100, 3)
        assert manifest.provenance.options["max-sequences"] == "3" and manifest.provenance.options["target"] == "cpu-avx2"
        assert bytes(plan.entry("ir/04-fuse.mlir")) == (folder / "ir" / "04-fuse.mlir").read_bytes()
    assert set(PHASES) <= summary["seconds"].keys()
    assert "shape-only" in result.stderr


def test_the_summary_for_people(config: Path, folder: Path) -> None:
    result = run(config)
    assert "plan.bin: tiny for cpu-avx2, f32" in result.stdout and "next: tokenspeed-run plan.bin" in result.stdout
    assert (folder / "plan.bin").exists()


def test_targets_are_listed() -> None:
    """In a pipe: one line each, aligned, whatever the terminal's width."""
    text = CliRunner().invoke(COMMAND, ["--list-targets"], env={"COLUMNS": "20"})
    assert text.exit_code == 0
    head, *lines = text.stdout.splitlines()
    assert head.split() == ["name", "vendor", "arch", "memory", "bandwidth", "bf16", "state"]
    assert [line.split()[0] for line in lines] == [*TARGETS, *ACCELERATORS]
    assert all(line[head.index("state") :] in get_args(State) for line in lines)
    rows = json.loads(CliRunner().invoke(COMMAND, ["--list-targets", "--json"]).stdout)
    assert [row["name"] for row in rows] == [*TARGETS, *ACCELERATORS]
    assert rows[-1]["arch"] == "gfx950" and rows[-1]["sizes"]["memory"]["value"] == 288e9
    assert all(rate["unit"] and rate["source"] for row in rows for rate in row["rates"].values())


def test_a_terminal_gets_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_targets(ACCELERATORS, Console(force_terminal=True, width=120))
    text = capsys.readouterr().out
    assert "┃" in text and "4.30 TB/s*" in text and "measured" in text


ERRORS: tuple[tuple[list[object], int, str], ...] = (
    (["nowhere/at/all"], 6, "no model at this path"),
    (["README.txt"], 6, "not a model that can be read"),
    ([], 2, "no model was given"),
    (["MODEL", "--memory", "lots"], 2, "not an amount of memory"),
    (["MODEL", "--memory", "1MiB"], 7, "too much"),
    (["MODEL", "--memory", "0"], 7, "too much"),
    (["MODEL", "--max-context", "257"], 2, "2 to 256"),
    (["MODEL", "--max-context", "0"], 2, "2 to 256"),
    (["MODEL", "--max-context", "-5"], 2, "2 to 256"),
    (["MODEL", "--target", "h1000"], 2, "there is no target 'h1000'"),
    (["MODEL", "--dtype", "f16"], 2, "does not compute in f16"),
    (["MODEL", "--dtype", "f64"], 2, "Invalid value"),
    (["MODEL", "--max-sequences", "0"], 2, "Invalid value"),
    (["MODEL", "--stop-after", "optimise"], 2, "Invalid value"),
    (["MODEL", "--traffic", "README.txt"], 2, "not a traffic profile"),
    (["MODEL", "--bundle-weights"], 6, "no weights to bundle"),
    (["MODEL", "-o", "no/such/folder/plan.bin"], 74, "no/such/folder"),
    (["REFORMER"], 6, "reformer"),
    (["UNKNOWN"], 6, "lama"),
    (["WRONG"], 6, "cannot build a llama model"),
)


@pytest.mark.parametrize(
    ("arguments", "code", "message"), ERRORS, ids=[" ".join(map(str, item[0])) or "nothing" for item in ERRORS]
)
def test_errors_have_a_code_a_message_and_no_trace(
    arguments: list[object], code: int, message: str, config: Path, folder: Path
) -> None:
    (folder / "README.txt").write_text("{}?")
    models: dict[str, dict[str, Any]] = {
        "REFORMER": {"model_type": "reformer", "is_decoder": True},
        "UNKNOWN": FAMILIES["llama"] | {"model_type": "lama"},
        "WRONG": FAMILIES["llama"] | {"num_attention_heads": 0},
    }
    paths = {"MODEL": config} | {name: folder / f"{name}.json" for name in models}
    for name, value in models.items():
        paths[name].write_text(json.dumps(value))
    result = run(*(paths.get(str(item), item) for item in arguments))
    assert result.exit_code == code, result.output
    assert message in result.stderr and "Traceback" not in result.output and "internal error" not in result.output
    assert not (folder / "plan.bin").exists()


def test_memory_that_is_too_small_says_by_how_much(config: Path, folder: Path) -> None:
    result = run(config, "--memory", "40MiB", "--json")
    error = json.loads(result.stderr.splitlines()[-1])
    assert error["error"] == "MemoryPlanError" and error["got"] == "40.00 MiB"
    assert "weights" in error["expected"] and "arena" in error["expected"] and "too much" in error["what"]


def test_a_host_tier_without_room_for_a_block(config: Path, folder: Path) -> None:
    result = run(config, "--host-kv", "3KiB")
    assert result.exit_code and "--host-kv" in result.stderr and "not one KV block fits" in result.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8GiB", 8 << 30),
        ("8g", 8 * 10**9),
        ("500MB", 500 * 10**6),
        ("1073741824", 1 << 30),
        (" 1.5 KiB ", 1536),
        ("2T", 2 * 10**12),
    ],
)
def test_amounts_of_memory(text: str, expected: int) -> None:
    assert parse_bytes(text, "--memory") == expected


@given(st.text(max_size=12))
def test_any_text_is_an_amount_or_a_usage_error(text: str) -> None:
    try:
        assert parse_bytes(text, "--memory") >= 0
    except UsageError as error:
        assert error.where == "--memory"
