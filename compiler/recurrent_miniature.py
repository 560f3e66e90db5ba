"""Sizes of recurrent layers in a miniature: few heads, small states, as configurations call them."""

from __future__ import annotations

from typing import Any

ROUNDED_TO = 64
HEADS, GROUPS, STATE, KEY_DIM, VALUE_DIM = 4, 2, 16, 16, 12

_HEADS_AND_SIZES = (
    ("mamba_n_heads", "mamba_d_head"),
    ("n_mamba_heads", "mamba_headdim"),
    ("mamba_num_heads", "mamba_head_dim"),
    ("num_heads", "head_dim"),
)
"""Heads of a state space layer and their size; together they are as wide as the layer inside."""
_EXPANSIONS = ("mamba_expand", "expand")
_GROUPS = ("mamba_n_groups", "mamba_ngroups", "n_groups")
_STATES = ("mamba_d_state", "state_size", "ssm_state_size")
_RANKS = ("mamba_dt_rank", "time_step_rank")


def shrink_recurrence(config: dict[str, Any], small: dict[str, Any]) -> None:
    """Shrink in `small`, whose hidden size is set, what `config` says of state space and gated delta layers."""
    _shrink_widths(config, small)
    if not any(config.get(name) for name in (*_STATES, "linear_num_key_heads", "linear_num_heads")):
        return
    hidden = int(small["hidden_size"])
    expansion = next((int(config[name]) for name in _EXPANSIONS if config.get(name)), 2)
    inner = expansion * hidden
    if config.get("mamba_d_ssm"):
        inner = small["mamba_d_ssm"] = 2 * hidden
    for heads, size in _HEADS_AND_SIZES:
        if config.get(heads) and config.get(size):
            small[heads], small[size] = HEADS, inner // HEADS
    for name in _GROUPS:
        if config.get(name):
            small[name] = min(int(config[name]), GROUPS)
    for name in _STATES:
        if config.get(name):
            small[name] = min(int(config[name]), STATE)
    for name in _RANKS:
        if isinstance(config.get(name), int):
            small[name] = min(int(config[name]), 6)
    for name, size in (("linear_num_heads", HEADS), ("linear_head_dim", KEY_DIM)):
        if config.get(name):
            small[name] = size
    if config.get("linear_num_key_heads"):
        ratio = max(1, int(config.get("linear_num_value_heads") or 1) // int(config["linear_num_key_heads"]))
        small["linear_num_key_heads"], small["linear_num_value_heads"] = 2, 2 * min(ratio, 4)
        small["linear_key_head_dim"], small["linear_value_head_dim"] = KEY_DIM, VALUE_DIM


def _shrink_widths(config: dict[str, Any], small: dict[str, Any]) -> None:
    """Widths that are as many times the hidden size as they were."""
    if config.get("qk_dim_factor"):  # widths inside are rounded up to these, and have to be multiples
        small["hidden_size"] = small["embedding_dim"] = round(ROUNDED_TO / float(config["qk_dim_factor"]))
        small["num_heads"] = HEADS
    hidden = int(small["hidden_size"])
    for name in ("attention_hidden_size", "lru_width"):
        if config.get(name) and config.get("hidden_size"):
            small[name] = hidden * int(config[name]) // int(config["hidden_size"])
    if config.get("attention_head_dim") and config.get("attention_hidden_size"):  # blocks that take the embeddings besides
        small["attention_head_dim"] = int(small["attention_hidden_size"]) // int(small["num_attention_heads"])
