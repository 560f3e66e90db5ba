"""Plans for accelerators that keep a checkpoint's 8-bit floats: which weights, a rank's part of them, and how they are loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenspeed.compiler.frontends.source import open_model
from tokenspeed.compiler.goldens import rounded_to_float8
from tokenspeed.compiler.options import CompileOptions
from tokenspeed.compiler.pipeline import Compilation, compile_model
from tokenspeed.ir.module import context
from tokenspeed.passes.placing.pins import Pin
from tokenspeed.plans.reader import Plan
from tokenspeed.plans.recipe import Recipe, inputs_of
from tokenspeed.plans.writer import write_plan
from tokenspeed.runtime.executor import load_executor

from ..float8_checkpoints import SETTINGS, rounded
from ..runtime.device.fake_driver import build
from ..tiny_models import FAMILIES, save
from ..tiny_models import build as model_of
from .test_device_plan import OPTIONS, build_with, headers_alone, kind_of

_SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "head_dim": 32}
CONFIG: dict[str, Any] = FAMILIES["qwen3"] | _SIZES
BLOCK = (128, 128)


def compiled(source: Path, target: str, stop_after: str = "emit", **more: Any) -> Compilation:
    options = CompileOptions(target=target, **{**OPTIONS, **more})  # pyright: ignore[reportArgumentType]
    with context():
        return compile_model(open_model(source), options, lambda *_: None, stop_after)


def steps_of(recipe: Recipe) -> set[str]:
    found = {type(recipe).__name__}
    return found.union(*(steps_of(part) for part in inputs_of(recipe)))


def test_rounding_of_goldens_is_that_of_torch() -> None:
    """Every code of 8 bits, and a block of zeros."""
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().nan_to_num(0.0)
    values = torch.cat([codes.reshape(2, 128) * 0.37, torch.zeros(1, 128), torch.linspace(-1, 1, 128)[None] ** 9])
    scales = values.abs().amax(1, keepdim=True) / 448.0
    expected = (values / scales.where(scales > 0, 1.0)).to(torch.float8_e4m3fn).float() * scales
    assert torch.equal(rounded_to_float8(values), expected)


def test_of_a_configuration_alone(tmp_path: Path) -> None:
    """Layers are in 8-bit floats, the head and the table are not; what a rank has no whole blocks of is of the model's type."""
    settings = SETTINGS["block"] | {"weight_block_size": list(BLOCK)}
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": settings}))
    layout = {"parallel": "tp=2", "placement": (Pin("*", "cut"),), "memory": 4 << 30}
    state = compiled(tmp_path / "config.json", "h200:2", "select", **layout)
    weights = {weight.name: weight for weight in state.weights}
    stored = {name: weight.dtype for name, weight in weights.items() if len(weight.shape) == 2}
    down, output = "model.layers.{i}.mlp.down_proj.weight", "model.layers.{i}.self_attn.o_proj.weight"
    assert weights[down].shape == (128, 128) and stored[down] == "e4m3_128"
    assert "Part" in steps_of(weights[down].recipe) and "Blocks" in steps_of(weights[down].recipe)
    assert weights[output].shape == (128, 64) and stored[output] == "bf16"
    assert {stored["lm_head.weight"], stored["model.embed_tokens.weight"]} == {"bf16"}
    assert sum(dtype == "e4m3_128" for dtype in stored.values()) == 3


def test_blocks_are_packed_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_with(monkeypatch, headers_alone)
    stored = rounded(save(model_of(CONFIG), tmp_path / "model"), "block", BLOCK)
    state = compiled(stored, "h200")
    assert state.manifest is not None
    write_plan(tmp_path / "plan.bin", state.manifest, state.entries)
    with Plan.open(tmp_path / "plan.bin") as plan:
        plan.verify_all()
        device = plan.manifest.device
        assert device is not None
        packed = [weight for weight in plan.manifest.weights if weight.dtype == "e4m3_128"]
        assert len(packed) == 4 and all(steps_of(weight.recipe) <= {"Blocks", "Concat", "Source"} for weight in packed)
        packing = {item.name for item in device.functions if item.name.startswith("pack.")}
        assert packing == {"pack.f32.e4m3_128.c128", "pack.e4m3_128.e4m3_128.c128"}
        library = build(tmp_path)
        library.reset("cuda")
        for kernel in device.kernels:
            library.declare(kernel.symbol, "".join(kind_of(item) for item in kernel.parameters))
        executor = load_executor(plan, str(stored), None, lambda _phase: None, driver=library.driver())
        executor.close()
        assert library.problem == "" and library.held == 0
