"""tokenspeed-bench on a tiny plan with made-up weights: what is counted must be right; no time is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenspeed.runtime.expand
from click.testing import CliRunner, Result
from tokenspeed.compiler.frontends.source import open_model
from tokenspeed.compiler.options import CompileOptions
from tokenspeed.compiler.pipeline import compile_model
from tokenspeed.ir.module import context
from tokenspeed.passes.schedule import TrafficProfile
from tokenspeed.plans.errors import UsageError
from tokenspeed.plans.reader import Plan
from tokenspeed.plans.writer import write_plan
from tokenspeed.runtime import bench_cli
from tokenspeed.runtime.benchmark import latency, machine_rates
from tokenspeed.runtime.benchmark.fixed_steps import StepMaker
from tokenspeed.runtime.benchmark.function_times import timed_functions
from tokenspeed.runtime.benchmark.machine_rates import MachineRates
from tokenspeed.runtime.benchmark.throughput import ThroughputFailed, ThroughputOptions, run_closed_loop

from .fake_executor import EchoExecutor

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TRAFFIC = TrafficProfile(prompt_tokens=160, cached_fraction=0.8, output_tokens=4, concurrency=2)


@pytest.fixture(scope="module")
def plan_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    options = CompileOptions(dtype="f32", max_context=512, max_sequences=4, prefill_chunk=64, traffic=TRAFFIC)
    with context():
        state = compile_model(open_model(folder / "config.json"), options, lambda _phase, _state: None)
    assert state.manifest is not None
    write_plan(folder / "plan.bin", state.manifest, state.entries)
    return folder / "plan.bin"


@pytest.fixture
def small_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real measurement, on a small buffer."""

    def measure(dtype: str) -> MachineRates:
        return MachineRates(dtype, "onednn", machine_rates.sum_bandwidth(1, 1 << 20), machine_rates.gemm_rate(dtype, 1, 8, 64)[0])

    monkeypatch.setattr(latency, "measure_rates", measure)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(bench_cli.main, [str(argument) for argument in arguments])


@pytest.mark.usefixtures("small_rates")
def test_latency(plan_path: Path) -> None:
    common = ("--weights", "dummy", "--batch", "1,3", "--steps", 4, "--prompt-tokens", 100, "--prompts", 2, "--breakdown")
    done = run("latency", plan_path, *common, "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    prompt, one, three = report["prompt"], *report["decode"]
    assert [point["rows"] for point in (prompt, one, three)] == [100, 1, 3]
    assert [point["seconds"]["count"] for point in (prompt, one, three)] == [2, 4, 4]
    for point in (prompt, one, three):
        assert point["measured_over_predicted"] > 0 < point["speed_of_light"]
        assert set(point["breakdown"]["parts"]) == {"fill", "expand", "model", "sample", "result"}
    launches = {item["function"]: item["launches"] for item in one["breakdown"]["functions"]}
    assert launches["native.attention"] == 3 and launches["native.draw_tokens"] == 1
    # a prompt of 100 tokens takes two chunks, and only the second one samples
    launches = {item["function"]: item["launches"] for item in prompt["breakdown"]["functions"]}
    assert launches["native.attention"] == 3 and launches["native.draw_tokens"] == 0.5
    done = run("latency", plan_path, *common)
    assert done.exit_code == 0 and "measured/predicted" in done.stdout and "linear" in done.stdout


def test_throughput(plan_path: Path) -> None:
    done = run("throughput", plan_path, "--weights", "dummy", "--requests", 5, "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    # the plan's traffic: 128 of 160 prompt tokens are common, two whole units of prefix identity
    assert (report["prompt_tokens"], report["output_tokens"], report["concurrency"]) == (160, 4, 2)
    assert report["hit_rate"] == 0.8 and report["computed_input_tokens"] == 5 * 32
    assert report["preemptions"] == 0 and report["ttft_seconds"]["count"] == 5
    assert 0 < report["scheduler_share"] < 1 and 0 < report["executor_share"] < 1.01
    minute = report["tokens_per_minute_per_accelerator"] / report["output_tokens_per_minute_per_accelerator"]
    assert minute == pytest.approx((160 + 4) / 4)
    assert set(report["predictions"]) == {"ttft_seconds", "tpot_seconds", "output_tokens_per_second"}
    table = run("throughput", plan_path, "--weights", "dummy", "--requests", 2, "--no-overlap", "--cached-fraction", 0)
    assert table.exit_code == 0 and "TPS/user" in table.stdout and "0.0%" in table.stdout


def test_a_failing_request_is_no_throughput(plan_path: Path) -> None:
    executor = EchoExecutor()
    executor.failures = [RuntimeError("out of order")]
    options = ThroughputOptions(None, None, requests=2, concurrency=1, prompt_tokens=8, output_tokens=2, cached_fraction=0.0)
    with Plan.open(plan_path) as plan, pytest.raises(ThroughputFailed, match="out of order"):
        run_closed_loop(plan.manifest, executor, options, lambda _text: None)


def test_what_the_plan_cannot_do_is_refused(plan_path: Path) -> None:
    for arguments in (
        ("latency", plan_path, "--batch", "5"),
        ("latency", plan_path, "--context", "600"),
        ("latency", plan_path, "--prompt-tokens", "513"),
        ("throughput", plan_path, "--prompt-tokens", "510"),
    ):
        done = run(*arguments, "--weights", "dummy", "--json")
        assert done.exit_code == 2, arguments
        assert json.loads(done.stderr)["fix"]
    assert run("latency", plan_path, "--batch", "1,x").exit_code == 2
    assert run("latency", plan_path, "--batch", "0").exit_code == 2
    missing = run("latency", plan_path, "--prompt-tokens", 64, "--batch", 1)
    assert missing.exit_code == 5 and "--weights dummy" in missing.stderr


def test_steps_keep_to_the_step_interface(plan_path: Path) -> None:
    with Plan.open(plan_path) as plan:
        manifest = plan.manifest
    maker, size = StepMaker(manifest), manifest.kv.block_tokens
    decode = list(maker.decode(3, 100, 70))
    assert [step.context_lengths.tolist() for step in decode] == [[100 + n] * 3 for n in range(70)]
    for step in (*decode, maker.largest(), maker.longest(), *maker.prompt(100)):
        assert len(step.token_ids) <= manifest.schedule.max_rows
        lengths = zip(step.block_tables, step.context_lengths.tolist(), strict=True)
        owned = [set(table[: -(-length // size)].tolist()) for table, length in lengths]
        assert sum(map(len, owned)) == len(set().union(*owned)), "sequences share no block"
        assert all(0 <= block < manifest.kv.blocks for blocks in owned for block in blocks)
        sequence = np.repeat(np.arange(len(step.context_lengths)), np.diff(step.sequence_starts))
        expected = step.block_tables[sequence, step.positions // size].astype(np.int64) * size + step.positions % size
        assert step.slot_mapping.tolist() == expected.tolist()
    assert maker.largest().decode_rows == 3 and len(maker.largest().token_ids) == 3 + 64
    assert [len(step.logit_rows) for step in maker.prompt(100)] == [0, 1]
    with pytest.raises(UsageError):
        next(maker.decode(4, 512, 1))


def test_the_lookup_is_put_back() -> None:
    before = tokenspeed.runtime.expand.lookup
    with pytest.raises(KeyError), timed_functions():
        assert tokenspeed.runtime.expand.lookup is not before
        raise KeyError
    assert tokenspeed.runtime.expand.lookup is before


def test_startup_tells_what_the_process_said(plan_path: Path) -> None:
    # a shape-only plan without a tokenizer cannot complete a text
    done = run("startup", plan_path, "--weights", "dummy", "--repeats", 1)
    assert done.exit_code == 1 and "ended without a token" in done.stderr


def test_a_refusal_comes_before_torch(plan_path: Path) -> None:
    code = f"""
import sys
from tokenspeed.runtime.bench_cli import main
try:
    main(["latency", {str(plan_path.with_name("absent.bin"))!r}])
except SystemExit as error:
    print(error.code, [name for name in ("torch", "numpy", "tokenspeed.runtime.executor") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "3 []"
