"""Tiny configurations of recurrent models."""

from __future__ import annotations

from typing import Any

_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "vocab_size": 160,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": None,
}
# as the compiler makes miniatures, so that these are traced once
_WITH_ATTENTION: dict[str, Any] = {
    **_SIZES,
    "vocab_size": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}

RECURRENT_MODELS: dict[str, dict[str, Any]] = {
    "mamba": {**_SIZES, "model_type": "mamba", "state_size": 8, "intermediate_size": 128, "time_step_rank": 6},
    "mamba2": {
        **_SIZES,
        "model_type": "mamba2",
        "state_size": 16,
        "num_heads": 4,
        "head_dim": 32,
        "expand": 2,
        "n_groups": 2,
        "chunk_size": 16,
        "layer_norm_epsilon": 1e-05,
    },
    "lfm2": {**_WITH_ATTENTION, "model_type": "lfm2", "layer_types": ["conv", "full_attention", "conv"], "block_multiple_of": 8},
    "rwkv": {**_SIZES, "model_type": "rwkv", "num_hidden_layers": 2, "attention_hidden_size": 64, "context_length": 256},
    "qwen3_next": {
        **_WITH_ATTENTION,
        "model_type": "qwen3_next",
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 12,
        "linear_conv_kernel_dim": 4,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "head_dim": 16,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 40,
        "shared_expert_intermediate_size": 56,
    },
}
