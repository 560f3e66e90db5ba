"""Checkpoints in 8-bit floats: plans give the logits of transformers with the values they stand for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenspeed.compiler.frontends.source import open_model
from tokenspeed.plans.errors import ModelError
from transformers import AutoModelForCausalLM

from .float8_checkpoints import rounded
from .test_families import CHUNKED, check, compiled, quick  # noqa: F401  the fixture
from .tiny_models import FAMILIES, MIXTURES, build, save


@pytest.mark.parametrize(("name", "kind"), [("deepseek_v3", "block"), ("mistral", "row"), ("qwen3", "tensor")])
def test_logits_are_those_of_the_values(name: str, kind: str, tmp_path: Path) -> None:
    directory = save(build((FAMILIES | MIXTURES)[name]), tmp_path / "model")
    stored = rounded(directory, kind)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    found = compiled(stored, stored, model)
    assert "F8_E4M3" in {source.encoding for source in found.plan.manifest.sources}
    check(found, [*CHUNKED])


def test_a_matrix_without_scales_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    stored = rounded(save(build(FAMILIES["mistral"]), tmp_path / "model"), "row")
    tensors = load_file(stored / "model.safetensors")
    save_file({name: value for name, value in tensors.items() if "scale" not in name}, stored / "model.safetensors")
    with pytest.raises(ModelError, match="no scales"):
        open_model(stored).recipe("model.layers.{i}.mlp.up_proj.weight", "f32", (96, 64))
