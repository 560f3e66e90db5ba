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

LISTED = ("layer_types", "mlp_layer_types", "layers_block_type", "no_rope_layers", "attention_types", "attention_layers")
"""Lists with an entry for each layer: left to be made for the smaller depth."""

TOKENS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
"""Of the small vocabulary."""

_DECODER: dict[str, Any] = {"is_decoder": True, "add_cross_attention": False}
"""Encoders that may be decoders: with causal attention, and nothing to attend across to."""

_LATENT: dict[str, Any] = {"head_dim": 6, "num_key_value_heads": 4, "num_experts_per_tok": 3}
"""Latent attention: heads are as wide as what rope turns of them."""

_ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}

_GEMMA3N: dict[str, Any] = {
    "intermediate_size": 96,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "num_kv_shared_layers": 0,
    "vocab_size_per_layer_input": 160,
    "hidden_size_per_layer_input": 16,
    "activation_sparsity_pattern": None,
}
"""Layers have keys and values of their own."""

_GEMMA4: dict[str, Any] = {
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "global_head_dim": 32,
    "num_kv_shared_layers": 0,
    "vocab_size_per_layer_input": 160,
    "hidden_size_per_layer_input": 16,
}
"""Heads of the last layer are wider."""

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
    "gemma3n_text": _GEMMA3N,
    "gemma4_text": _GEMMA4,
    "gemma4_unified_text": _GEMMA4,
    "glm4_moe_lite": _LATENT,
    "glm_moe_dsa": _LATENT,
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16, "moe_topk": 3},
    "got_ocr2": {"tie_word_embeddings": False},
    "hy_v4": _LATENT,
    "laguna": {"num_attention_heads_per_layer": [4, 4, 4]},
    "minicpm3": _LATENT,
    "ministral": {"head_dim": 16},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    "youtu": _LATENT,
    "zaya": {"num_experts_per_tok": 1},
    "bert": _DECODER,
    "bert-generation": _DECODER,
    "big_bird": {**_DECODER, "attention_type": "original_full"},
    "camembert": _DECODER,
    "data2vec-text": _DECODER,
    "electra": _DECODER,
    "ernie": _DECODER,
    "megatron-bert": _DECODER,
    "rembert": {**_DECODER, "input_embedding_size": 64, "output_embedding_size": 64},
    "roberta": _DECODER,
    "roberta-prelayernorm": _DECODER,
    "roc_bert": _DECODER,
    "roformer": _DECODER,
    "xlm-roberta": _DECODER,
    "xlm-roberta-xl": _DECODER,
    "xmod": {**_DECODER, "languages": ["en_XX"], "default_language": "en_XX"},
    "gpt_neo": {"attention_types": [[["global", "local"], 1], [["global"], 1]], "window_size": 7},
    "gptj": {"rotary_dim": 8},
    "codegen": {"rotary_dim": 8},
}
"""By model type, what its tiny configuration differs in from the class's defaults and `SIZES`."""
