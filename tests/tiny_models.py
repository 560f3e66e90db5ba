"""Tiny models of every supported family: configurations, traces made once a test session, checkpoints with random weights."""

from __future__ import annotations

import copy
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
from torch.export import ExportedProgram
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
    "pad_token_id": None,
}
_SMALL: dict[str, Any] = {**_SIZES, "vocab_size": 256, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
"""As the compiler makes miniatures: with one trace for both, a family takes half the time. Others have sizes of their own."""

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
}

_WINDOW_AND_FULL = ["sliding_attention", "sliding_attention", "full_attention"]
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.4, 1.6, 2.0],
    "long_factor": [1.0, 1.3, 2.0, 3.0, 4.0, 6.0],
    "original_max_position_embeddings": ORIGINAL_MAXIMUM,
    "partial_rotary_factor": 0.75,
}

MORE_FAMILIES: dict[str, dict[str, Any]] = {
    "gemma": {**_SIZES, "model_type": "gemma", "head_dim": 24},
    "gemma2": {
        **_SIZES,
        "model_type": "gemma2",
        "head_dim": 24,
        "query_pre_attn_scalar": 20,
        "sliding_window": 7,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    # two tables of rope; windows by a pattern
    "gemma3_text": {
        **_SMALL,
        "model_type": "gemma3_text",
        "head_dim": 16,
        "query_pre_attn_scalar": 20,
        "sliding_window": 8,
        "layer_types": _WINDOW_AND_FULL,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 10000.0},
        },
    },
    "phi3": {**_SMALL, "model_type": "phi3", "sliding_window": 8, "partial_rotary_factor": 0.5},
    "phi3 longrope": {
        **_SMALL,
        "model_type": "phi3",
        "original_max_position_embeddings": ORIGINAL_MAXIMUM,
        "rope_parameters": _LONGROPE,
    },
    "olmo2": {**_SMALL, "model_type": "olmo2"},
    "granite": {
        **_SMALL,
        "model_type": "granite",
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.3,
        "attention_multiplier": 0.15,
        "logits_scaling": 0.6,
    },
    "cohere2": {
        **_SMALL,
        "model_type": "cohere2",
        "sliding_window": 8,
        "layer_types": _WINDOW_AND_FULL,
        "layer_norm_eps": 1e-5,
        "logit_scale": 0.7,
    },
    "glm4": {**_SIZES, "model_type": "glm4", "head_dim": 24, "attention_bias": True, "partial_rotary_factor": 0.5},
    "stablelm": {**_SMALL, "model_type": "stablelm", "use_qkv_bias": True, "partial_rotary_factor": 0.25},
    "smollm3": {**_SMALL, "model_type": "smollm3", "no_rope_layers": [1, 1, 0], "use_sliding_window": False},
    "exaone4": {**_SMALL, "model_type": "exaone4", "sliding_window": 8, "layer_types": _WINDOW_AND_FULL},
    "starcoder2": {**_SMALL, "model_type": "starcoder2", "sliding_window": 8, "norm_epsilon": 1e-5},
    # one linear layer whose rows go head by head: q, k and v of the first head, of the second, ...
    "gpt_neox": {**_SMALL, "model_type": "gpt_neox", "rotary_pct": 0.25, "use_parallel_residual": True},
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 64,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 256,
        "vocab_size": 160,
        "bos_token_id": None,
        "eos_token_id": 2,
    },
    "phi": {**_SMALL, "model_type": "phi", "partial_rotary_factor": 0.5},
    "ernie4_5": {**_SMALL, "model_type": "ernie4_5", "head_dim": 16, "use_bias": True},
    "helium": {**_SMALL, "model_type": "helium", "head_dim": 16},
    "arcee": {**_SMALL, "model_type": "arcee"},
}

_EXPERTS: dict[str, Any] = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 40}
# every size differs from the others, the first layer has no experts
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 20,
    "q_lora_rank": 28,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 14,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
}
MIXTURES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {**_SMALL, **_EXPERTS, "model_type": "qwen3_moe", "head_dim": 16, "norm_topk_prob": True},
    "qwen3_moe, some layers dense": {**_SMALL, **_EXPERTS, "model_type": "qwen3_moe", "head_dim": 16, "mlp_only_layers": [1]},
    "mixtral": {**_SMALL, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": {**_SMALL, "model_type": "olmoe", "num_experts": 8, "num_experts_per_tok": 3},
    "granitemoe": {**_SMALL, "model_type": "granitemoe", "num_local_experts": 6, "num_experts_per_tok": 2},
    "gpt_oss": {
        **_SMALL,
        "model_type": "gpt_oss",
        "head_dim": 16,
        "sliding_window": 8,
        "num_hidden_layers": 4,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
    },
    "glm4_moe": {
        **_SMALL,
        "model_type": "glm4_moe",
        "head_dim": 16,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 40,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 1.5,
    },
    "deepseek_v3": {**_SIZES, **_LATENT, "model_type": "deepseek_v3", "n_group": 4, "topk_group": 2},
    "deepseek_v3, rope in halves": {
        **_SIZES,
        **_LATENT,
        "model_type": "deepseek_v3",
        "rope_interleave": False,
        "q_lora_rank": None,
        "n_group": 1,
        "topk_group": 1,
    },
}
"""Mixtures of experts, with multi-head latent attention or without."""
"""Families that add something to those: each is raised in both element types and checked once over all kinds of steps."""


CONTEXT = 128
"""Tokens of the longest sequence that models are traced for, unless a test says otherwise."""

_OF_CHECKPOINTS = {"architectures", "quantization_config", "transformers_version"}
"""Fields of a configuration that say who wrote a checkpoint, and how."""

_exported = tracing._exported
_EXPORTED: dict[str, tuple[ExportedProgram, int]] = {}


def exported(model: Any, mask: Any, context: int) -> tuple[ExportedProgram, int]:
    """The compiler's own, remembering: once layers are folded, a model and its miniature may be one and the same."""
    key = repr((mask, context, _what_it_is(model)))
    if key not in _EXPORTED:
        _EXPORTED[key] = _exported(model, mask, context)
    return copy.deepcopy(_EXPORTED[key])


def _what_it_is(model: Any) -> object:
    """All that a model computes with, but for the values of its tensors."""
    features = [
        (path, type(module), sorted((name, value) for name, value in vars(module).items() if tracing._is_feature(name, value)))
        for path, module in model.named_modules()
    ]
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    config = [(name, value) for name, value in sorted(model.config.to_dict().items()) if name not in _OF_CHECKPOINTS]
    config.append(("attention", model.config._attn_implementation))
    return features, [(name, value.shape, value.dtype) for name, value in named], config


@functools.cache
def _traced(config: str, dtype: str, every_layer: bool, context: int) -> TracedModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracing, "_exported", exported)
        return tracing.trace(json.loads(config), dtype, every_layer, context)


def traced(config: dict[str, Any], dtype: str, every_layer: bool = False, context: int = CONTEXT) -> TracedModel:
    """`trace`, remembering: tracing is a function of the configuration alone, and takes seconds."""
    return _traced(json.dumps(config, sort_keys=True), dtype, every_layer, context)


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
        saved = model.state_dict()
        for name, buffer in model.named_buffers():
            if name in saved and buffer.is_floating_point():
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
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
