"""Tokenizer files of a Hugging Face directory: tokenizer.json, the chat template, special tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ...plans.errors import ModelError
from .json_files import read_json
from .model_source import TokenizerFiles, token_ids

ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")


def read_tokenizer(
    directory: Path, config: dict[str, Any], generation: dict[str, Any]
) -> tuple[TokenizerFiles | None, tuple[str, ...]]:
    """The tokenizer of a model directory and notes for the user; None with a note when there is no tokenizer.json.

    End tokens are generation_config.json's (else config.json's), then the tokenizer's own end token.
    Raises ModelError when a file is unreadable or names a token that the vocabulary does not have.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        return None, (_missing(directory),)
    content = path.read_bytes()
    tokenizer = parse_tokenizer(content, str(path))
    settings = read_json(directory / "tokenizer_config.json", optional=True)
    special = _special_tokens(directory, settings)
    ends = token_ids(generation.get("eos_token_id")) or token_ids(config.get("eos_token_id"))
    own_end = _id_of(tokenizer, special, "eos_token", path)
    begin = _id_of(tokenizer, special, "bos_token", path)
    files = TokenizerFiles(
        tokenizer_json=content,
        chat_template=_chat_template(directory, settings),
        special_tokens=special,
        end_tokens=tuple(dict.fromkeys((*ends, *(() if own_end is None else (own_end,))))),
        begin_token=begin,
        add_begin_token=_adds_begin_token(tokenizer, settings, begin),
    )
    return files, ()


def parse_tokenizer(content: bytes, where: str) -> Tokenizer:
    """The tokenizer that `content` describes. Raises ModelError when it is damaged or newer than the tokenizers library."""
    try:
        return Tokenizer.from_buffer(content)
    except ValueError as error:  # the only type that `tokenizers` documents for unreadable content
        raise ModelError(
            "The tokenizer cannot be read.",
            where=where,
            got=str(error)[:300],
            fix="fetch tokenizer.json again, or update the tokenizers library",
        ) from None


def _missing(directory: Path) -> str:
    if (directory / "tokenizer.model").is_file():
        return (
            "No tokenizer.json (only tokenizer.model): the plan will not turn text into tokens. Make one with "
            "transformers: AutoTokenizer.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY)."
        )
    return "No tokenizer.json: the plan will not turn text into tokens."


def _special_tokens(directory: Path, settings: dict[str, Any]) -> dict[str, str]:
    older = read_json(directory / "special_tokens_map.json", optional=True)
    found: dict[str, str] = {}
    for role in ROLES:
        value = settings.get(role, older.get(role))
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str) and text:
            found[role] = text
    return found


def _id_of(tokenizer: Tokenizer, special: dict[str, str], role: str, path: Path) -> int | None:
    if role not in special:
        return None
    token = tokenizer.token_to_id(special[role])
    if token is None:
        raise ModelError(
            "A special token is not in the vocabulary.",
            where=str(path),
            expected=f"a token {special[role]!r} ({role} of tokenizer_config.json)",
            got=f"{tokenizer.get_vocab_size()} tokens, none of that text",
            fix="fetch tokenizer.json and tokenizer_config.json of the same model",
        )
    return token


def _chat_template(directory: Path, settings: dict[str, Any]) -> str:
    """chat_template.jinja, else tokenizer_config.json's template; of a list of named templates, "default"."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ModelError("The chat template is not UTF-8 text.", where=str(path), got=str(error)) from None
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else ""


def _adds_begin_token(tokenizer: Tokenizer, settings: dict[str, Any], begin: int | None) -> bool:
    """What tokenizer_config.json says; where it is silent, what tokenizer.json's own post-processor does."""
    if begin is None:
        return False
    declared = settings.get("add_bos_token")
    if isinstance(declared, bool):
        return declared
    return tokenizer.encode("", add_special_tokens=True).ids[:1] == [begin]
