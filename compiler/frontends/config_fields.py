"""Fields of a Hugging Face configuration by their common names: some models spell them in their own way (GPT-2: n_embd)."""

from __future__ import annotations

from typing import Any

_OF_THE_DECODER = {
    "num_hidden_layers": ("decoder_layers", "num_decoder_layers"),
    "num_attention_heads": ("decoder_attention_heads", "num_decoder_attention_heads"),
}
"""Configurations of encoder-decoder models mean the encoder by the common names."""
_OF_A_TYPE = {("longcat_flash", "num_hidden_layers"): "num_layers"}
"""Types that mean something else by the common name: here the attentions, two in each layer."""


def own_name(config: dict[str, Any], name: str) -> str:
    """How a configuration's model type spells the field that most call `name`; `name` itself where it has no other."""
    for decoder in _OF_THE_DECODER.get(name, ()):
        if config.get(decoder) is not None:
            return decoder
    # imported here: it takes seconds, and much of the compiler does not need it
    from transformers import CONFIG_MAPPING

    model_type: str = config.get("model_type", "")
    if (model_type, name) in _OF_A_TYPE:
        return _OF_A_TYPE[model_type, name]
    names = CONFIG_MAPPING[model_type].attribute_map if model_type in CONFIG_MAPPING else {}
    return names.get(name, name)


def read_field(config: dict[str, Any], name: str) -> Any:
    """The field's value under its own or its common name, None when the configuration has neither."""
    own = config.get(own_name(config, name))
    return config.get(name) if own is None else own


def set_field(config: dict[str, Any], name: str, value: Any) -> None:
    """Set the field under every name it may be read by."""
    config[own_name(config, name)] = config[name] = value
