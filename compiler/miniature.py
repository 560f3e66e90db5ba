"""A small model with the same code paths: sizes shrunk, every flag kept. Raising is proved on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .frontends.config_fields import read_field, set_field
from .frontends.layer_list import INDEX_LISTS, kept_indices
from .frontends.repeats import fold
from .recurrent_miniature import shrink_recurrence

HEAD_DIM, INTERMEDIATE, VOCABULARY, WINDOW = 16, 96, 256, 8
PADDING = 0
"""The padding token, which no text of the proof holds."""
EXPERTS, EXPERTS_OF_A_ROW, GROUPS = 12, 3, 4

_OTHER_VOCABULARIES = ("vocab_size_per_layer_input", "decoder_vocab_size")
_EMBEDDING_WIDTHS = ("embedding_size", "input_embedding_size", "output_embedding_size", "word_embed_proj_dim")
EMBEDDING = 24
"""Features of an embedding that is projected to the hidden size."""

_HEAD_GROUPS = {"codegen": 4}
"""Groups of heads that are together in one projection, whatever the number of heads, by model type."""

_SECTIONED_TYPES = ("qwen3_5", "qwen4_exp")
"""Types that divide their frequencies into sections even where the configuration does not say how."""
_SECTIONED_PART = 0.75
"""Of a head: six frequencies, two for each section."""

_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_EXPERT_SIZES = {"moe_intermediate_size": 40, "shared_expert_intermediate_size": 56, "moe_shared_expert_intermediate_size": 56}
_LATENT_SIZES = {"q_lora_rank": 48, "kv_lora_rank": 20, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10}


def miniature(config: dict[str, Any], kinds: Sequence[int]) -> dict[str, Any]:
    """The configuration of a miniature with one layer per kind, or as few layers as still fold into the model's patterns.

    Keeps the ratio of query to key/value heads (up to 8), the presence of an own head_dim, windows, rope variant, biases.
    """
    small = dict(config)
    heads, hidden = int(read_field(config, "num_attention_heads") or 4), int(read_field(config, "hidden_size") or 0)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    kv_small = min(kv_heads, _HEAD_GROUPS.get(str(config.get("model_type")), 2))
    few = kv_small * min(heads // kv_heads, 8)
    small["num_key_value_heads"] = kv_small
    set_field(small, "num_attention_heads", few)
    if config.get("head_dim"):
        small["head_dim"] = HEAD_DIM
    set_field(small, "hidden_size", few * HEAD_DIM)
    small["intermediate_size"] = INTERMEDIATE
    set_field(small, "vocab_size", VOCABULARY)
    for name in _OTHER_VOCABULARIES:
        if config.get(name):
            small[name] = VOCABULARY
    _shrink_embeddings(config, small)
    for name, value in config.items():
        if isinstance(value, dict):
            small[name] = _with_fewer_factors(value, int(config.get("head_dim") or hidden // heads or 1))
    if config.get("sliding_window"):
        small["sliding_window"] = WINDOW
    _keep_sections(config, small)
    _shrink_experts(config, small)
    _shrink_latents(config, small)
    shrink_recurrence(config, small)
    for name in ("bos_token_id", "eos_token_id"):
        small[name] = PADDING  # of the small vocabulary; some types take no None
    small["pad_token_id"] = PADDING  # some models count positions from it
    representatives = _representatives(kinds)
    depth = len(kinds)
    for name, value in config.items():
        if isinstance(value, list) and len(value) == depth and depth > 1:
            small[name] = [value[index] for index in representatives]
    for name in INDEX_LISTS:
        if config.get(name) is not None:
            small[name] = kept_indices(config[name], representatives)
    if config.get("block_types"):  # which layers take in turn
        small["block_types"] = [config["block_types"][index % len(config["block_types"])] for index in representatives]
    _keep_dense_layers(config, small, representatives)
    if isinstance(config.get("per_layer_config"), dict):
        own = {int(index): fields for index, fields in config["per_layer_config"].items()}
        small["per_layer_config"] = {at: own[index] for at, index in enumerate(representatives) if index in own}
    set_field(small, "num_hidden_layers", len(representatives))
    if config.get("num_blocks"):
        small["num_blocks"] = len(representatives)
    return small


def _with_fewer_factors(rope: dict[str, Any], head_dim: int) -> dict[str, Any]:
    """Rope parameters with as many factors of single frequencies (longrope) as the miniature has frequencies."""
    small = dict(rope)
    for name in ("short_factor", "long_factor"):
        if isinstance(rope.get(name), list):
            small[name] = rope[name][: len(rope[name]) * HEAD_DIM // head_dim]
    return small


def _shrink_embeddings(config: dict[str, Any], small: dict[str, Any]) -> None:
    """Embeddings as wide as the hidden size stay so, for others are projected to it."""
    for name in _EMBEDDING_WIDTHS:
        if config.get(name):
            small[name] = small["hidden_size"] if config[name] == read_field(config, "hidden_size") else EMBEDDING


def _keep_sections(config: dict[str, Any], small: dict[str, Any]) -> None:
    """Rope whose frequencies take turns at three kinds of positions: enough of them that each kind has its turn."""
    rope = small.get("rope_parameters") or {}
    if "mrope_section" not in rope and not str(config.get("model_type")).startswith(_SECTIONED_TYPES):
        return
    small["rope_parameters"] = {**rope, "partial_rotary_factor": _SECTIONED_PART}
    small["partial_rotary_factor"] = _SECTIONED_PART
    if "mrope_section" in rope:
        small["rope_parameters"]["mrope_section"] = [2, 2, 2]


def _shrink_latents(config: dict[str, Any], small: dict[str, Any]) -> None:
    """Multi-head latent attention: ranks, and features with and without rope, all different from each other."""
    for name, size in _LATENT_SIZES.items():
        if config.get(name):
            small[name] = size
    if config.get("qk_rope_head_dim") and config.get("head_dim") == config["qk_rope_head_dim"]:
        small["head_dim"] = small["qk_rope_head_dim"]
    if config.get("qk_head_dim"):
        small["qk_head_dim"] = small["qk_nope_head_dim"] + small["qk_rope_head_dim"]


def _keep_dense_layers(config: dict[str, Any], small: dict[str, Any], representatives: Sequence[int]) -> None:
    """Layers without experts, in the two ways that configurations name them by index."""
    if config.get("first_k_dense_replace") is not None:
        small["first_k_dense_replace"] = sum(index < int(config["first_k_dense_replace"]) for index in representatives)
    step = int(config.get("decoder_sparse_step") or 1)
    if step > 1 or config.get("mlp_only_layers"):
        named = config.get("mlp_only_layers") or []
        dense = [at for at, index in enumerate(representatives) if index in named or (index + 1) % step]
        small["mlp_only_layers"], small["decoder_sparse_step"] = dense, 1


def _shrink_experts(config: dict[str, Any], small: dict[str, Any]) -> None:
    """Few experts, of which a part is selected; groups of them where the model has groups."""
    counts = [name for name in _EXPERT_COUNTS if config.get(name)]
    groups = GROUPS if int(config.get("n_group") or 1) > 1 else 1
    for name in counts:
        small[name] = min(int(config[name]), EXPERTS)
    if counts and groups > 1:
        small["n_group"], small["topk_group"] = groups, min(int(config["topk_group"]), groups - 1)
    if counts and config.get("num_experts_per_tok"):
        small["num_experts_per_tok"] = min(int(config["num_experts_per_tok"]), EXPERTS_OF_A_ROW)
    for name, size in _EXPERT_SIZES.items():
        if config.get(name):
            small[name] = size


def _representatives(kinds: Sequence[int]) -> list[int]:
    """The layers to keep: two rounds of each pattern, for fusion may join the end of a layer to the next one of its pattern."""
    patterns = fold(kinds)
    if all(len(found.pattern) == 1 for found in patterns):
        return [list(kinds).index(kind) for kind in range(max(kinds) + 1)]
    rounds = [(found.first, min(found.count, 2) * len(found.pattern)) for found in patterns]
    return [first + offset for first, length in rounds for offset in range(length)]
