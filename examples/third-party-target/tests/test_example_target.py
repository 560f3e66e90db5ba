"""The plugin as its user meets it: its target is listed, a plan uses its kernel, says so, and gives the right numbers."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from tokenspeed.compiler.cli import main as compile_command
from tokenspeed.plans.reader import Plan
from tokenspeed.runtime.host import host_features
from tokenspeed.runtime.plan_cli import main as plan_command
from tokenspeed.targets.cpu.build import find_compiler

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "vocab_size": 160,
    "hidden_act": "silu",
    "dtype": "float32",
}


def run(command: click.Command, *arguments: object) -> str:
    result = CliRunner().invoke(command, [str(item) for item in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_target_is_listed() -> None:
    rows = {row["name"]: row for row in json.loads(run(compile_command, "--list-targets", "--json"))}
    assert rows["cpu-avx2-quad"]["rates"]["bandwidth"]["value"] == 102.4e9


@pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler")
def test_a_plan_uses_the_kernel_and_says_whose_it_is(tmp_path: Path) -> None:
    (tmp_path / "llama.json").write_text(json.dumps(LLAMA))
    path = tmp_path / "plan.bin"
    run(compile_command, tmp_path / "llama.json", "-o", path, "--target", "cpu-avx2-quad")
    with Plan.open(path) as plan:
        manifest = plan.manifest
        decisions = json.loads(bytes(plan.entry("decisions.json")))
    assert manifest.target.name == "cpu-avx2-quad"
    assert manifest.provenance.plugins.keys() == {"tokenspeed-example-target"}
    assert manifest.kernels is not None and "example_gated_silu" in manifest.kernels.kernels
    (gated,) = [item for item in decisions if item["operation"] == "ts.gated_activation"]
    assert gated["kernel"] == "example.gated_silu" and gated["runner_up"] == "native.gated_activation"
    assert "tokenspeed-example-target" in run(plan_command, "inspect", path)
    if host_features().issuperset(manifest.target.features):
        assert "golden layers: passed" in run(plan_command, "verify", path)
