"""The configurations in examples/ build the published models: known parameter counts, rope, windows."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from tokenspeed.compiler.frontends.source import open_model
from transformers import AutoConfig, AutoModelForCausalLM

CONFIGS = Path(__file__).parents[3] / "examples" / "configs"
PARAMETERS = {
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "qwen3-8b": 8_190_735_360,
    "qwen3-0.6b": 596_049_920,
    "smollm2-135m": 134_515_008,
    "mistral-7b": 7_241_732_096,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "gpt-oss-20b": 20_914_757_184,
    "deepseek-v3": 671_026_404_352,
}


def test_every_example_is_listed() -> None:
    assert {path.stem for path in CONFIGS.glob("*.json")} == PARAMETERS.keys()


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name: str) -> None:
    source = open_model(CONFIGS / f"{name}.json")
    config = AutoConfig.for_model(**copy.deepcopy(source.config))
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config)
    assert type(module).__name__ == source.config["architectures"][0]
    assert sum(parameter.numel() for parameter in module.parameters()) == PARAMETERS[name]


def test_rope_and_windows() -> None:
    llama = AutoConfig.for_model(**copy.deepcopy(open_model(CONFIGS / "llama-3.1-8b.json").config))
    assert llama.rope_parameters["rope_type"] == "llama3" and llama.rope_parameters["rope_theta"] == 500000.0
    assert open_model(CONFIGS / "mistral-7b.json").config["sliding_window"] == 4096
    assert open_model(CONFIGS / "llama-3.1-8b.json").end_tokens == (128001, 128008, 128009)
