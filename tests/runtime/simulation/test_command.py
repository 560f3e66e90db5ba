"""`tokenspeed-plan simulate`: options to report, mistakes to one message and an exit code."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result
from tokenspeed.plans.program import DTYPE_BYTES, step_inputs
from tokenspeed.runtime.plan_cli import main
from tokenspeed.runtime.simulation.report import SCHEMA, TrafficReport

from ...plans.sample_plan import ROWS, SEQUENCES, write_sample_plan
from .tiny import tiny_manifest


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    tiny = tiny_manifest(blocks=32, max_rows=8)
    parts = {name: getattr(tiny, name) for name in ("performance", "model")}
    inputs = step_inputs(ROWS, SEQUENCES, tiny.kv.blocks)
    taken = sum(prod(item.shape) * DTYPE_BYTES[item.dtype] for item in inputs)
    memory = msgspec.structs.replace(tiny.memory, inputs=taken)
    write_sample_plan(tmp_path / "plan.bin", **parts, step_inputs=inputs, memory=memory)
    return tmp_path / "plan.bin"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    folder = tmp_path / "traces"
    folder.mkdir()
    for name in ("one", "two"):
        requests = [
            {"t": 0.0, "in": 100, "out": 5, "hash_ids": [1], "stop": "tool_use", "api_time": 1.0},
            {"t": 9.0, "in": 200, "out": 5, "hash_ids": [1, 2, 3], "stop": "end_turn", "api_time": 1.0},
            {"t": 99.0, "in": 9000, "out": 5, "hash_ids": list(range(140)), "stop": "end_turn", "api_time": 1.0},
        ]
        (folder / f"{name}.json").write_text(json.dumps({"id": name, "block_size": 64, "requests": requests}))
    return folder


def simulate(plan: Path, *arguments: object) -> Result:
    return CliRunner().invoke(main, ["simulate", str(plan), *map(str, arguments)])


def test_a_report_on_the_terminal_as_json_and_as_a_page(plan: Path, trace: Path, tmp_path: Path) -> None:
    found, page = tmp_path / "report.json", tmp_path / "report.html"
    result = simulate(plan, "--trace", trace, "--agents", 2, "--json", found, "--html", page)
    assert result.exit_code == 0, result.output
    assert "hit rate" in result.output and "2 turns" in result.output
    report = msgspec.json.decode(found.read_bytes(), type=TrafficReport)
    assert (report.schema, report.kind, report.all.turns) == (SCHEMA, "simulated", 4)
    assert report.traffic["left_out_turns"] == 2 and report.all.cached_tokens == 2 * 64
    assert report.makespan_seconds > 8, "gaps of 8 seconds"
    assert "<svg" in page.read_text()
    printed = simulate(plan, "--trace", trace, "--agents", 2, "--json", "-")
    assert msgspec.json.decode(printed.output, type=TrafficReport).all == report.all


def test_options_change_what_is_played(plan: Path, trace: Path, tmp_path: Path) -> None:
    rates = tmp_path / "rates.json"
    rates.write_text('{"bandwidth": 1e9, "compute": 1e9}')

    def report(*arguments: object) -> TrafficReport:
        result = simulate(plan, "--trace", trace, "--json", "-", *arguments)
        assert result.exit_code == 0, result.output
        return msgspec.json.decode(result.output, type=TrafficReport)

    usual = report()
    assert report("--most-gap", 0).makespan_seconds < usual.makespan_seconds - 5
    assert report("--open-loop").traffic["loop"] == "open"
    assert report("--rates", rates, "--most-gap", 0).makespan_seconds < 2
    assert report("--sessions", 3, "--max-turns", 1).all.turns == 3
    assert report("--context-scale", 0.5).all.input_tokens < usual.all.input_tokens
    assert report("--plain").policy["swap"] is False and report("--without", "swap").policy["fair_sessions"] is True
    tiered = report("--host-kv", "1MiB").cache
    assert tiered is not None and tiered.host_blocks > 0
    slow = report("--no-overlap", "--host-seconds", 2, "--request-seconds", 1)
    assert slow.all.ttft_seconds.p50 > usual.all.ttft_seconds.p50 + 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--trace", "/nowhere.json"), 2, "cannot be read"),
        (("--agents", 2, "--open-loop"), 2, "open or closed"),
        (("--without", "nothing"), 2, "no feature"),
        (("--host-kv", "lots"), 2, "not an amount of memory"),
        (("--host-kv", "3B"), 2, "not one KV block"),
        (("--rates", "/dev/null"), 2, "rates cannot be read"),
        (("--time-scale", "nan"), 2, "not usable"),
        (("--context-scale", 100), 2, "No turn of the trace fits"),
        (("--rates", "/nowhere.json"), 74, "No such file"),
    ],
)
def test_mistakes_are_one_message(plan: Path, trace: Path, arguments: tuple[object, ...], code: int, message: str) -> None:
    result = simulate(plan, "--trace", trace, *arguments)
    assert result.exit_code == code and message in result.output
    assert "Traceback" not in result.output
