"""GGUF metadata of the llama, qwen2 and qwen3 architectures as a Hugging Face configuration."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from ...plans.checkpoint import CheckpointTensor
from ...plans.errors import ModelError
from .gguf_metadata import GgufMetadata
from .gguf_rope import rope_settings

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

# what these architectures do not have in transformers, with the value at which it does nothing
_NEUTRAL = {
    "attention.scale": 0.0,
    "attention.clamp_kqv": 0.0,
    "attn_logit_softcapping": 0.0,
    "final_logit_softcapping": 0.0,
    "logit_scale": 0.0,
    "residual_scale": 0.0,
    "embedding_scale": 0.0,
    "expert_count": 0.0,
    "pooling_type": 0.0,
}


def model_config(
    metadata: GgufMetadata, arch: str, tensors: Mapping[str, CheckpointTensor], rope_factors: np.ndarray | None
) -> dict[str, Any]:
    """config.json as transformers expects it for the model in this file.

    Raises ModelError when a key is missing, or says something that the transformers model would not compute.
    """
    _require_neutral(metadata, arch)
    hidden = metadata.require(f"{arch}.embedding_length", int)
    heads = metadata.require(f"{arch}.attention.head_count", int)
    head_dim = _head_dim(metadata, arch, hidden, heads)
    window = _sliding_window(metadata, arch)
    model_type = "mistral" if window is not None else arch
    config: dict[str, Any] = {
        "architectures": [_CLASSES[model_type]],
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": metadata.require(f"{arch}.feed_forward_length", int),
        "num_hidden_layers": metadata.require(f"{arch}.block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.get(f"{arch}.attention.head_count_kv", int, heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": metadata.require(f"{arch}.attention.layer_norm_rms_epsilon", float),
        "max_position_embeddings": metadata.require(f"{arch}.context_length", int),
        "vocab_size": _vocabulary(metadata, tensors),
        "tie_word_embeddings": "output.weight" not in tensors,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id", int),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id", int),
        **rope_settings(metadata, arch, head_dim, rope_factors),
        **_biases(model_type, tensors),
    }
    if window is not None:
        config["sliding_window"] = window
    return config


def _require_neutral(metadata: GgufMetadata, arch: str) -> None:
    for name, neutral in _NEUTRAL.items():
        value = metadata.get(f"{arch}.{name}", float, neutral)
        if value != neutral:
            raise _unsupported(metadata, f"{arch}.{name}", "not set", str(value))
    if not metadata.get(f"{arch}.attention.causal", bool, True):
        raise _unsupported(metadata, f"{arch}.attention.causal", "true", "false")


def _head_dim(metadata: GgufMetadata, arch: str, hidden: int, heads: int) -> int:
    if heads <= 0 or hidden <= 0:
        raise _unsupported(metadata, f"{arch}.attention.head_count", "a positive number", str(heads))
    head_dim = metadata.get(f"{arch}.attention.key_length", int, hidden // heads)
    if head_dim <= 0 or head_dim % 2:
        raise _unsupported(metadata, f"{arch}.attention.key_length", "a positive even number", str(head_dim))
    for name in ("attention.value_length", "rope.dimension_count"):
        value = metadata.get(f"{arch}.{name}", int, head_dim)
        if value != head_dim:
            raise _unsupported(metadata, f"{arch}.{name}", f"the head dimension, {head_dim}", str(value))
    return head_dim


def _sliding_window(metadata: GgufMetadata, arch: str) -> int | None:
    """The window, if it is shorter than the context. Mistral ships as llama with this key."""
    key = f"{arch}.attention.sliding_window"
    window = metadata.get(key, int, 0)
    if not 0 < window < metadata.require(f"{arch}.context_length", int):
        return None
    if arch != "llama":
        raise _unsupported(metadata, key, "no window (the file does not say which layers have it)", str(window))
    return window


def _vocabulary(metadata: GgufMetadata, tensors: Mapping[str, CheckpointTensor]) -> int:
    """Rows of the embedding; the token list may be shorter (padded embeddings), never longer."""
    tokens = len(metadata.require("tokenizer.ggml.tokens", list))
    if "token_embd.weight" not in tensors:
        raise ModelError("The GGUF file has no embedding.", where=str(metadata.path), expected="tensor token_embd.weight")
    rows = tensors["token_embd.weight"].shape[0]
    if tokens > rows:
        raise ModelError(
            "The vocabulary is larger than the embedding.",
            where=f"{metadata.path}, tensor token_embd.weight",
            expected=f"at least {tokens} rows",
            got=str(rows),
        )
    return rows


def _biases(model_type: str, tensors: Collection[str]) -> dict[str, bool]:
    """llama and qwen3 say in the configuration whether linears have biases; qwen2's q, k, v always have them."""
    found: dict[str, bool] = {}
    if model_type in ("llama", "qwen3"):
        found["attention_bias"] = "blk.0.attn_q.bias" in tensors
    if model_type == "llama":
        found["mlp_bias"] = "blk.0.ffn_up.bias" in tensors
    return found


def _unsupported(metadata: GgufMetadata, key: str, expected: str, got: str) -> ModelError:
    return ModelError(
        "This GGUF model has a setting that is not supported.",
        where=f"{metadata.path}, key {key}",
        expected=expected,
        got=got,
        fix="use the Hugging Face directory of this model",
    )
