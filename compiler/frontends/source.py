"""One door for every kind of model source: a Hugging Face directory, a GGUF file, a bare config.json."""

from __future__ import annotations

from pathlib import Path

from ...plans.errors import ModelError
from .gguf import open_gguf
from .huggingface import open_config, open_directory
from .model_source import ModelSource, TokenizerFiles

__all__ = ["ModelSource", "TokenizerFiles", "open_model"]

_FORMS = "a directory with config.json, a .gguf file, or a config .json file"


def open_model(path: Path) -> ModelSource:
    """Read a model: configuration, tensor table and tokenizer, no weights yet.

    Raises ModelError when the path is none of the forms read, or its files are missing, damaged or not supported.
    """
    if not path.exists():
        raise ModelError("There is no model at this path.", where=str(path), expected=_FORMS, fix="check the path")
    if path.is_dir():
        return open_directory(path)
    if path.suffix == ".gguf":
        return open_gguf(path)
    if path.suffix == ".json":
        return open_config(path)
    raise ModelError(
        "This file is not a model that can be read.",
        where=str(path),
        expected=_FORMS,
        got=f"a file ending in {path.suffix!r}",
        fix="give the model's directory rather than one of its files",
    )
