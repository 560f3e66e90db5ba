"""Hugging Face model directories, and bare config.json files: configuration, safetensors weights, tokenizer files."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from ...plans.checkpoint import Checkpoint
from ...plans.errors import ModelError
from .float8 import Float8, read_float8
from .json_files import read_json
from .model_source import ModelSource, open_weights, source_tensors
from .provenance import sha256
from .tokenizer import read_tokenizer

_DIGESTED = {
    "config": "config.json",
    "generation_config": "generation_config.json",
    "tokenizer": "tokenizer.json",
    "tokenizer_config": "tokenizer_config.json",
    "special_tokens_map": "special_tokens_map.json",
    "chat_template": "chat_template.jinja",
}

_SHARED = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "dtype", "torch_dtype")
"""What a configuration of several parts may say for its language model."""


def open_directory(directory: Path) -> ModelSource:
    """A directory with config.json; shape-only when it has no weights. Raises ModelError, naming the file."""
    config, float8 = _read_config(directory / "config.json")
    generation = read_json(directory / "generation_config.json", optional=True)
    tokenizer, notes = read_tokenizer(directory, config, generation)
    checkpoint = _open_weights(directory)
    if checkpoint is None:
        notes = ("No weights here: the plan is shape-only, weights attach later.", *notes)
    else:
        config = _with_tied_embeddings(config, checkpoint)
    return ModelSource(
        name=_directory_name(directory),
        config=config,
        sources=None if checkpoint is None else source_tensors(checkpoint),
        checkpoint=checkpoint,
        tokenizer=tokenizer,
        inputs={
            role: sha256((directory / name).read_bytes()) for role, name in _DIGESTED.items() if (directory / name).is_file()
        },
        notes=notes,
        float8=float8,
    )


def open_config(path: Path) -> ModelSource:
    """A configuration alone: shape-only, without a tokenizer. Raises ModelError."""
    config, float8 = _read_config(path)
    return ModelSource(
        name=_directory_name(path.parent) if path.name == "config.json" else path.stem,
        config=config,
        sources=None,
        checkpoint=None,
        tokenizer=None,
        inputs={"config": sha256(path.read_bytes())},
        notes=("Only a configuration: the plan is shape-only and has no tokenizer. Give the directory to have both.",),
        float8=float8,
    )


def _read_config(path: Path) -> tuple[dict[str, Any], Float8 | None]:
    """The configuration, and what it says of 8-bit floats."""
    if not path.is_file():
        raise ModelError(
            "This directory is not a Hugging Face model.",
            where=str(path.parent),
            expected="a file config.json",
            fix="give the directory that holds config.json, or a .gguf file",
        )
    config = _with_numbers(read_json(path))
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ModelError(
            "The configuration does not say what model it is.",
            where=f"{path}, field model_type",
            expected="a model type of transformers, e.g. llama",
            got="nothing" if model_type is None else repr(model_type),
        )
    _require_known_type(config, model_type, path)
    settings = config.pop("quantization_config", None)
    return _language_model(config), read_float8(settings, str(path)) if settings else None


def _language_model(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the language model inside one of several parts, where both types name the same causal LM class."""
    # imported here, as below
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    text = config.get("text_config")
    if not isinstance(text, dict) or not isinstance(text.get("model_type"), str):
        return config
    outer, inner = (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(part["model_type"]) for part in (config, text))
    if inner is None or inner != outer:
        return config
    shared = {name: config[name] for name in _SHARED if config.get(name) is not None and text.get(name) is None}
    return {**text, **shared}


def _with_numbers(item: Any) -> Any:
    """A configuration with the numbers that JSON has no spelling for, which transformers writes as {"__float__": "Infinity"}."""
    if isinstance(item, list):
        return [_with_numbers(part) for part in item]
    if not isinstance(item, dict):
        return item
    if item.keys() == {"__float__"} and item["__float__"] in {"Infinity", "-Infinity", "NaN"}:
        return float(item["__float__"])
    return {name: _with_numbers(part) for name, part in item.items()}


def _require_known_type(config: dict[str, Any], model_type: str, path: Path) -> None:
    # imported here: it takes seconds, and GGUF files do not need it
    from transformers import CONFIG_MAPPING

    if model_type in CONFIG_MAPPING:
        return
    if config.get("auto_map"):
        raise ModelError(
            "This model needs code from its own repository, which is never run.",
            where=f"{path}, field auto_map",
            expected="a model type that transformers itself implements",
            got=f"model_type {model_type}",
            fix="use a version of the model that transformers supports without trust_remote_code",
        )
    known = list(CONFIG_MAPPING.keys())
    close = difflib.get_close_matches(model_type, known, n=3)
    raise ModelError(
        "The installed transformers does not know this model type.",
        where=f"{path}, field model_type",
        expected=f"one of its {len(known)} types" + (f", e.g. {', '.join(close)}" if close else ""),
        got=model_type,
    )


def _open_weights(directory: Path) -> Checkpoint | None:
    if (directory / "model.safetensors.index.json").is_file() or any(directory.glob("*.safetensors")):
        return open_weights(directory)
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in directory.glob(pattern))
    if pickled:
        raise ModelError(
            "The weights are pickle files, which can run code when read and are never opened.",
            where=str(directory / pickled[0]),
            expected="*.safetensors",
            got=", ".join(pickled[:3]),
            fix="convert with transformers: AutoModelForCausalLM.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY)",
        )
    return None


def _with_tied_embeddings(config: dict[str, Any], checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint without lm_head, whose configuration is silent, has its head tied to the embedding.

    A configuration that says the opposite is left alone: asking for lm_head.weight then fails by name.
    """
    tensors = checkpoint.tensors
    if "tie_word_embeddings" in config or "lm_head.weight" in tensors or "model.embed_tokens.weight" not in tensors:
        return config
    return {**config, "tie_word_embeddings": True}


def _directory_name(directory: Path) -> str:
    """A directory's name; for a snapshot in the hub's cache, the repository's name rather than the revision's."""
    resolved = directory.resolve()
    if resolved.parent.name == "snapshots" and resolved.parent.parent.name.startswith("models--"):
        return resolved.parent.parent.name.removeprefix("models--").replace("--", "/")
    return resolved.name
