"""Tiny models of every supported family: configurations, traces made once a test session, checkpoints with random weights."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenspeed.compiler import pipeline, proof
from tokenspeed.compiler.frontends import trace as tracing
from tokenspeed.compiler.frontends.trace import TracedModel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 160,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": None,
    "eos_token_id": 2,
}
ORIGINAL_MAXIMUM = 32
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": ORIGINAL_MAXIMUM,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**_SIZES, "model_type": "llama", "tie_word_embeddings": True, "rope_parameters": LLAMA3_ROPE},
    # two layers in the body of a repeat, then one more
    "qwen2": {
        **_SIZES,
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 7,
        "num_hidden_layers": 5,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention", "full_attention"],
    },
    "qwen3": {**_SIZES, "model_type": "qwen3", "head_dim": 24, "tie_word_embeddings": False},
    "mistral": {**_SIZES, "model_type": "mistral", "sliding_window": 5, "head_dim": 16},
    "qwen3_moe": {
        **_SIZES,
        "model_type": "qwen3_moe",
        "head_dim": 16,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
        "tie_word_embeddings": False,
    },
    "mixtral": {**_SIZES, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
}


@functools.cache
def _traced(config: str, dtype: str, every_layer: bool) -> TracedModel:
    return tracing.trace(json.loads(config), dtype, every_layer)


def traced(config: dict[str, Any], dtype: str, every_layer: bool = False) -> TracedModel:
    """`trace`, remembering: tracing is a function of the configuration alone, and takes seconds."""
    return _traced(json.dumps(config, sort_keys=True), dtype, every_layer)


def remember_traces(patch: pytest.MonkeyPatch) -> None:
    """Make the compiler's own calls of `trace` remember too."""
    for room in (pipeline, proof):
        patch.setattr(room, "trace", traced)


def build(config: dict[str, Any], seed: int = 0) -> PreTrainedModel:
    """transformers' eager model in float32. Weights keep activations near one; norms and biases are far from their defaults."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    typed = AutoConfig.for_model(**json.loads(json.dumps(config)))
    model = AutoModelForCausalLM.from_config(typed, dtype=torch.float32, attn_implementation="eager").eval()
    transformers.logging.set_verbosity(level)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
            else:
                parameter.copy_(0.3 * noise + ("norm" in name))
    return model


@functools.cache
def family_config(name: str) -> dict[str, Any]:
    """A family's config.json as transformers saves it, so that tests from directories share their traces with others."""
    with tempfile.TemporaryDirectory() as folder:
        save(build(FAMILIES[name]), Path(folder))
        return json.loads((Path(folder) / "config.json").read_text())


def save(model: PreTrainedModel, directory: Path, **options: Any) -> Path:
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(directory, **options)
    return directory
