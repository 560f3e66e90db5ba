"""The two models of the comparison as Hugging Face directories in bfloat16, made once under a cache directory."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenspeed.plans.errors import TokenspeedError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

_REPOSITORY = Path(__file__).resolve().parents[2]
_QWEN3_CONFIG = _REPOSITORY / "examples" / "configs" / "qwen3-0.6b.json"
_FETCH_SMOLLM2 = _REPOSITORY / "examples" / "fetch_smollm2.py"
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

MODELS = ("smollm2-135m", "qwen3-0.6b")


class CheckpointError(TokenspeedError):
    """A model of the comparison could not be made."""


def checkpoint(model: str, cache: Path) -> Path:
    """The directory of `model` (one of MODELS) under `cache`: config.json, model.safetensors, and SmolLM2's tokenizer.

    A directory appears only when it is whole. Raises CheckpointError.
    """
    target = cache / model / "hf-bf16"
    if not target.is_dir():
        partial = target.with_name("hf-bf16.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _MAKERS[model](partial, cache)
        partial.rename(target)
    return target


def _smollm2(directory: Path, cache: Path) -> None:
    """Real weights: those of the Q4_1 file of examples/fetch_smollm2.py, dequantised and rounded to bfloat16."""
    command = [sys.executable, str(_FETCH_SMOLLM2), str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise CheckpointError("SmolLM2-135M could not be fetched.", where=" ".join(command), got=lines[-1])
    model = AutoModelForCausalLM.from_pretrained(cache, gguf_file=_SMOLLM2_FILE, dtype=torch.bfloat16)
    # transformers does not save what it read from GGUF, so tensors and configuration are written apart
    _save({name: value.detach().contiguous() for name, value in model.named_parameters()}, directory)
    made_here = ("quantization_config", "_name_or_path", "_model_name_or_path")
    config = {name: value for name, value in model.config.to_dict().items() if name not in made_here}
    config["architectures"] = [type(model).__name__]
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    AutoTokenizer.from_pretrained(cache, gguf_file=_SMOLLM2_FILE).save_pretrained(directory)


def _qwen3(directory: Path, _cache: Path) -> None:
    """The true shape with made-up weights: normal, of the configuration's own deviation; norms are 1."""
    shutil.copyfile(_QWEN3_CONFIG, directory / "config.json")
    config = AutoConfig.from_pretrained(directory)
    random = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.ones(shape, dtype=torch.bfloat16)
        if len(shape) == 1
        else torch.empty(shape, dtype=torch.bfloat16).normal_(0, config.initializer_range, generator=random)
        for name, shape in _parameter_shapes(config)
    }
    _save(tensors, directory)


def _save(tensors: dict[str, torch.Tensor], directory: Path) -> None:
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def _parameter_shapes(config: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():  # a tied head is not named twice
        yield name, tuple(parameter.shape)


_MAKERS = {"smollm2-135m": _smollm2, "qwen3-0.6b": _qwen3}


def configuration(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "config.json").read_text())
