"""The language model inside a model of several parts (vision, audio, text): it alone is compiled.

Text without images or sounds goes through the text part as through a model of its own, which is what is traced and proved;
only the names of its parameters are those of the whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from ...plans.errors import ModelError
from .checkpoint_names import CheckpointNames

Shape = tuple[int, ...]

_OF_THE_WHOLE = ("dtype", "torch_dtype", "bos_token_id", "eos_token_id", "pad_token_id")


def text_configuration(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the text part; `config` itself where it is of a language model alone.

    A text part whose own type is none of a causal LM gets the name of the class that computes it, as `architectures`.
    """
    inner, outer_type = config.get("text_config"), config.get("model_type", "")
    if not isinstance(inner, dict) or outer_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return config
    kind = CONFIG_MAPPING[outer_type]
    part = kind.sub_configs.get("text_config")
    inner_type = inner.get("model_type") or getattr(part, "model_type", "")
    if inner_type not in CONFIG_MAPPING:
        return config
    text = {**{name: config[name] for name in _OF_THE_WHOLE if name in config}, **inner, "model_type": inner_type}
    if inner_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        text["architectures"] = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[outer_type]]
    elif is_wrapped(config, text):
        text["tie_word_embeddings"] = config.get("tie_word_embeddings", getattr(kind, "tie_word_embeddings", True))
    return text


def model_maker(config: dict[str, Any]) -> Callable[..., Any] | None:
    """What builds a causal LM from this configuration, made typed; None where transformers has no such model."""
    if config.get("model_type") in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return AutoModelForCausalLM.from_config
    named = next(iter(config.get("architectures") or ()), "")
    if named not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        return None
    made: Any = getattr(transformers, named)
    return made._from_config if made.config_class.model_type == config.get("model_type") else None


def maker_of_the_whole(config: dict[str, Any], text: dict[str, Any]) -> Callable[..., Any] | None:
    """What builds the model of all parts, whose checkpoints hold the `text` part; None where that is stored alone."""
    if text is config:
        return None
    if is_wrapped(config, text):
        return model_maker(config)
    named = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(config["model_type"])
    if named is None or named == MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config["model_type"]]:
        return None
    return getattr(transformers, named)._from_config


def is_wrapped(config: dict[str, Any], text: dict[str, Any]) -> bool:
    """Whether transformers computes the whole model with another class than its text part, so that names differ."""
    classes = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    inner = classes.get(text["model_type"])
    return text is not config and inner is not None and inner != classes[config["model_type"]]


def names_in_the_whole(
    names: CheckpointNames, whole: Mapping[str, Shape], text: Mapping[str, Shape], paths: tuple[str, str]
) -> CheckpointNames:
    """The whole model's checkpoint names, for parameters called as in its text part.

    `whole` and `text` are parameters' shapes by name; `paths` where the decoder is in the text part and in the whole.
    Raises ModelError for a parameter of the text part that the whole does not have.
    """
    found = dataclasses.replace(names, moved=paths)
    for name, shape in text.items():
        inside = found.moved_name(name)
        if whole.get(inside) != shape:
            raise ModelError(
                "the text part of this model is not the language model of its configuration",
                where=inside,
                expected=str(list(shape)),
                got=str(list(whole[inside])) if inside in whole else "no such parameter",
                fix="give the configuration of a language model alone",
            )
    return found
