"""Tiny configurations of every causal LM type of transformers, as data: what the model table compiles.

A type's configuration is its class's own defaults, made small: `SIZES` replaces each field that the class has, under whichever
name it has it, also in configurations inside it. `FIELDS` then replaces what a type needs to differ in.
"""

from __future__ import annotations

from typing import Any

SIZES: dict[str, int | float] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "ffn_dim": 96,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "num_hidden_layers": 3,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "num_attention_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 160,
    "decoder_vocab_size": 160,
    "max_position_embeddings": 256,
    "max_target_positions": 256,
    "sliding_window": 7,
    "num_experts": 8,
    "num_local_experts": 8,
    "n_routed_experts": 8,
    "moe_num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_k": 3,
    "moe_intermediate_size": 24,
    "expert_ffn_hidden_size": 24,
    "shared_expert_intermediate_size": 40,
    "moe_shared_expert_intermediate_size": 40,
    "kv_lora_rank": 20,
    "q_lora_rank": 28,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 14,
    "embedding_size": 64,
}
"""Replaced where a configuration has the field, by its own or its common name."""

_TEXT_SIZES = {name: size for name, size in SIZES.items() if not name.startswith(("encoder_", "decoder_"))}
"""Of the text part of a configuration of several parts: what a decoder beside an encoder is called means another depth there."""

LISTED = (
    "per_layer_config",
    "layer_types",
    "mlp_layer_types",
    "layers_block_type",
    "hybrid_layer_ids",
    "no_rope_layers",
    "attention_types",
    "attention_layers",
)
"""Lists with an entry for each layer, or of layers: left to be made for the smaller depth."""

TOKENS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
"""Of the small vocabulary."""

_DECODER: dict[str, Any] = {"is_decoder": True, "add_cross_attention": False}
"""Encoders that may be decoders: with causal attention, and nothing to attend across to."""

_LATENT: dict[str, Any] = {"head_dim": 6, "num_key_value_heads": 4, "num_experts_per_tok": 3}
"""Latent attention: heads are as wide as what rope turns of them."""

_ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}

_TEXT_SIZES = {name: size for name, size in SIZES.items() if not name.startswith(("encoder_", "decoder_"))}
"""Of a decoder alone, inside a configuration of several parts."""

_GEMMA3N: dict[str, Any] = {
    "num_hidden_layers": 5,
    "intermediate_size": 96,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": 160,
    "hidden_size_per_layer_input": 16,
    "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0, 0.0],
}
"""The last two layers read the keys and values of the two before them."""

_GEMMA4: dict[str, Any] = {
    "num_hidden_layers": 5,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    "global_head_dim": 32,
    "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": 160,
    "hidden_size_per_layer_input": 16,
}
"""Heads of layers without a window are wider; the last two layers read the keys and values of the two before them."""

_GEMMA4_UNIFIED: dict[str, Any] = {**_GEMMA4, "num_kv_shared_layers": 0}

_STATE_SPACE: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_n_groups": 2,
    "mamba_d_state": 16,
    "mamba_chunk_size": 8,
}
"""Mamba-2 layers inside: heads together are twice as wide as the model."""

_GATED_DELTA: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 12,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
"""Gated delta nets, and a layer of attention between them."""

_LANGUAGE_MODEL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 160,
    "max_position_embeddings": 256,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
}
"""The part of a configuration of several parts that is compiled."""

_SECTIONED: dict[str, Any] = {"head_dim": 48}
"""A quarter of a head is turned, by three kinds of positions in turn: enough frequencies for each."""

FIELDS: dict[str, dict[str, Any]] = {
    "axk1": {**_LATENT, "n_group": 4, "topk_group": 2},
    "axk2": _LATENT,
    "cohere_compass_text": {"rope_parameters": {"full_attention": {**_ROPE, "mrope_section": [3, 3, 2]}}},
    "dbrx": {
        "d_model": 64,
        "n_heads": 4,
        "n_layers": 3,
        "max_seq_len": 256,
        "attn_config": {"clip_qkv": 8, "kv_n_heads": 2, "rope_theta": 10000.0},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 96, "moe_num_experts": 8, "moe_top_k": 3},
    },
    "deepseek_v2": {**_LATENT, "q_lora_rank": None, "topk_method": "greedy", "n_group": 1, "topk_group": 1},
    "deepseek_v3": {**_LATENT, "n_group": 4, "topk_group": 2, "first_k_dense_replace": 1, "n_routed_experts": 8},
    "deepseek_v32": {**_LATENT, "n_group": 4, "topk_group": 2, "first_k_dense_replace": 1},
    "dots1": {"n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 1, "topk_group": 1, "n_shared_experts": 1},
    "gemma3n": {"text_config": {**_TEXT_SIZES, **_GEMMA3N}},
    "gemma3n_text": _GEMMA3N,
    "gemma4": {"text_config": {**_TEXT_SIZES, **_GEMMA4}},
    "gemma4_text": _GEMMA4,
    "gemma4_unified": {"text_config": {**_TEXT_SIZES, **_GEMMA4_UNIFIED}},
    "gemma4_unified_text": _GEMMA4_UNIFIED,
    "glm4_moe_lite": _LATENT,
    "glm_moe_dsa": _LATENT,
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16, "moe_topk": 3},
    "emu3": {"text_config": {**_TEXT_SIZES, **TOKENS}, "vocabulary_map": {"<image>": 9}},
    "got_ocr2": {"tie_word_embeddings": False},
    "hrm_text": {"num_hidden_layers": 12, "num_layers_per_stack": 2, "H_cycles": 2, "L_cycles": 2},
    "hy_v4": _LATENT,
    "laguna": {"num_attention_heads_per_layer": [4, 4, 4]},
    "longcat_flash": {**_LATENT, "qk_head_dim": 16, "num_layers": 2, "num_hidden_layers": 4, "zero_expert_num": 3},
    "minicpm3": _LATENT,
    "mllama": {"text_config": {**_TEXT_SIZES, **TOKENS, "cross_attention_layers": [1]}},
    "ministral": {"head_dim": 16},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    "youtu": _LATENT,
    "zaya": {"num_experts_per_tok": 1},
    "bert": _DECODER,
    "bert-generation": _DECODER,
    "big_bird": {**_DECODER, "attention_type": "original_full"},
    "camembert": _DECODER,
    "data2vec-text": _DECODER,
    "electra": {**_DECODER, "embedding_size": 48},
    "ernie": _DECODER,
    "megatron-bert": _DECODER,
    "rembert": {**_DECODER, "input_embedding_size": 48, "output_embedding_size": 80},
    "roberta": _DECODER,
    "roberta-prelayernorm": _DECODER,
    "roc_bert": _DECODER,
    "roformer": {**_DECODER, "embedding_size": 48},
    "xlm-roberta": _DECODER,
    "xlm-roberta-xl": _DECODER,
    "xlm": {"causal": True},
    "xlnet": {"attn_type": "uni", "d_head": 16, "d_inner": 96},
    "xmod": {**_DECODER, "languages": ["en_XX", "de_DE"], "default_language": "de_DE"},
    "bamba": {**_STATE_SPACE, "attn_layer_indices": [1]},
    "falcon_h1": {**_STATE_SPACE, "mamba_d_ssm": 128},
    "falcon_mamba": {"state_size": 8, "time_step_rank": 6},
    "granitemoehybrid": {
        **_STATE_SPACE,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "shared_intermediate_size": 40,
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 6},
    "kimi_linear": {
        "head_dim": 6,
        "num_key_value_heads": 4,
        "linear_head_dim": 16,
        "linear_num_heads": 4,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    },
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "mamba": {"state_size": 8, "time_step_rank": 6},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 2, "state_size": 16, "chunk_size": 8},
    "minimax": {"block_size": 8},
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "moe", "full_attention"],
        "ssm_state_size": 16,
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "n_groups": 2,
        "chunk_size": 8,
    },
    "olmo_hybrid": _GATED_DELTA,
    "qwen3_5": {"text_config": {**_LANGUAGE_MODEL, **_GATED_DELTA, **_SECTIONED, "model_type": "qwen3_5_text"}},
    "qwen3_5_moe": {"text_config": {**_LANGUAGE_MODEL, **_GATED_DELTA, **_SECTIONED, "model_type": "qwen3_5_moe_text"}},
    "qwen3_5_moe_text": {**_GATED_DELTA, **_SECTIONED},
    "qwen3_5_text": {**_GATED_DELTA, **_SECTIONED},
    "qwen3_next": _GATED_DELTA,
    "recurrent_gemma": {"lru_width": 64, "num_key_value_heads": 1},
    "rwkv": {"attention_hidden_size": 64},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128, "num_blocks": 3, "num_heads": 4},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "num_key_value_heads": 4,
        "mamba_d_state": 8,
        "mamba_dt_rank": 6,
        "use_mamba_kernels": False,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "num_key_value_heads": 4,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "n_mamba_heads": 8,
        "mamba_headdim": 16,
        "mamba_d_state": 16,
        "adapter_rank": 8,
        "chunk_size": 8,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1], [["global"], 1]], "window_size": 7},
    "gptj": {"rotary_dim": 8},
    "codegen": {"rotary_dim": 8},
}
"""By model type, what its tiny configuration differs in from the class's defaults and `SIZES`."""
