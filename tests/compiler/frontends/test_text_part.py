"""The text part of a model of several parts: its configuration, its class, and its parameters' names in the whole."""

from __future__ import annotations

from typing import Any

import pytest
from tokenspeed.compiler.frontends import trace as tracing
from tokenspeed.compiler.frontends.checkpoint_names import CheckpointNames
from tokenspeed.compiler.frontends.text_part import (
    is_wrapped,
    maker_of_the_whole,
    model_maker,
    names_in_the_whole,
    text_configuration,
)
from tokenspeed.plans.errors import ModelError
from tokenspeed.plans.recipe import sources
from transformers.core_model_loading import revert_weight_conversion

from ...tiny_models import FAMILIES

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 12,
    "vocab_size": 32,
    "pad_token_id": 0,
}
GEMMA3: dict[str, Any] = {
    "model_type": "gemma3",
    "dtype": "float32",
    "eos_token_id": [1, 2],
    "text_config": SMALL,
    "vision_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12},
}
MLLAMA: dict[str, Any] = {
    "model_type": "mllama",
    "text_config": {**SMALL, "cross_attention_layers": [1]},
    "vision_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_global_layers": 1, "attention_heads": 2},
}
"""Stored by a class that is no causal LM's."""
EMU3: dict[str, Any] = {"model_type": "emu3", "text_config": SMALL}


def test_a_language_model_alone_is_its_own_text_part() -> None:
    assert text_configuration(FAMILIES["llama"]) is FAMILIES["llama"]
    unknown = {"model_type": "no_such_type", "text_config": SMALL}
    assert text_configuration(unknown) is unknown
    assert maker_of_the_whole(unknown, unknown) is None


def test_the_text_part_has_its_own_type_and_what_the_whole_says_of_tokens() -> None:
    text = text_configuration(GEMMA3)
    assert (text["model_type"], text["eos_token_id"], text["dtype"]) == ("gemma3_text", [1, 2], "float32")
    assert text["tie_word_embeddings"] is True, "as the whole has it by default"
    assert text_configuration(GEMMA3 | {"tie_word_embeddings": False})["tie_word_embeddings"] is False
    assert is_wrapped(GEMMA3, text)


def test_a_text_part_of_no_type_of_its_own_is_built_by_its_class() -> None:
    text = text_configuration(EMU3)
    assert text["architectures"] == ["Emu3ForCausalLM"] and not is_wrapped(EMU3, text)
    assert model_maker(text) is not None
    assert model_maker({**text, "architectures": ["LlamaForCausalLM"]}) is None, "a class for other configurations"
    assert model_maker({**text, "architectures": None}) is None


@pytest.mark.parametrize("config", [GEMMA3, MLLAMA], ids=lambda config: config["model_type"])
def test_parameters_are_called_as_transformers_saves_the_whole(config: dict[str, Any]) -> None:
    text = text_configuration(config)
    with tracing.quiet():
        maker = maker_of_the_whole(config, text)
        assert maker is not None
        whole, part = tracing._build(config, "f32", "eager", maker), tracing._build(text, "f32")
        names = tracing._names(part, tracing._stored(part), config, text)
        saved = {name: tuple(tensor.shape) for name, tensor in revert_weight_conversion(whole, whole.state_dict()).items()}
    for name, shape in tracing._stored(part).items():
        made = names.parts(name, shape)
        assert sources(made.recipe) and made.shapes.items() <= saved.items()


def test_a_part_that_the_whole_does_not_have_is_refused() -> None:
    text = {"model.a": (2,), "lm_head": (3,)}
    found = names_in_the_whole(CheckpointNames(), {"model.text.a": (2,), "lm_head": (3,)}, text, ("model", "model.text"))
    assert found.moved_name("model.a") == "model.text.a" and found.moved_name("lm_head") == "lm_head"
    with pytest.raises(ModelError, match=r"text part.*\n.*model\.text\.a"):
        names_in_the_whole(CheckpointNames(), {"model.text.a": (4,), "lm_head": (3,)}, text, ("model", "model.text"))
