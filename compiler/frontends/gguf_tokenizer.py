"""A tokenizer.json rebuilt from the vocabulary tables of a GGUF file, in deterministic bytes.

Byte-level BPE ("gpt2") takes its way of splitting text from `tokenizer.ggml.pre`; SentencePiece BPE ("llama") has its
merges in the order of the scores. A value that is not known exactly is refused, never guessed: a wrong split gives
plausible but wrong token ids.
"""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE

from ...plans.errors import ModelError
from .gguf_metadata import GgufMetadata
from .model_source import TokenizerFiles
from .splitting import SPLITTINGS, Splitting

_PREFIX = "tokenizer.ggml."
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
# control tokens that end a turn or a document in the models these files hold, whether or not a key declares them
_END_TEXTS = frozenset({"<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>"})
_SPACE = "▁"


def rebuild_tokenizer(metadata: GgufMetadata) -> TokenizerFiles:
    """tokenizer.json, chat template and special tokens. Raises ModelError for tables that are damaged or of an unknown kind."""
    kind = metadata.require(_PREFIX + "model", str)
    tokens = _table(metadata, "tokens", str)
    types = _table(metadata, "token_type", int)
    _require_sound(metadata, tokens, types)
    if kind == "gpt2":
        splitting = _splitting(metadata)
        tokenizer = _byte_level(metadata, tokens, splitting)
        adds_begin = splitting.adds_begin_token
    elif kind == "llama":
        tokenizer = _sentencepiece(metadata, tokens, types)
        adds_begin = True
    else:
        raise ModelError(
            "This kind of tokenizer is not rebuilt from GGUF.",
            where=f"{metadata.path}, key {_PREFIX}model",
            expected="gpt2, llama",
            got=kind,
        )
    tokenizer.add_tokens(
        [_added(text, kind) for text, kind in zip(tokens, types, strict=True) if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)]
    )
    begin = _role(metadata, "bos", len(tokens), 1 if kind == "llama" else None)
    return TokenizerFiles(
        tokenizer_json=tokenizer.to_str().encode(),
        chat_template=metadata.get("tokenizer.chat_template", str, ""),
        special_tokens=_special_tokens(metadata, tokens),
        end_tokens=_end_tokens(metadata, tokens, types),
        begin_token=begin,
        add_begin_token=begin is not None and metadata.get(_PREFIX + "add_bos_token", bool, adds_begin),
    )


def _byte_level(metadata: GgufMetadata, tokens: list[str], splitting: Splitting) -> Tokenizer:
    model = _bpe(metadata, tokens, _merges(metadata), ignore_merges=splitting.ignore_merges)
    tokenizer = Tokenizer(model)
    if splitting.normalizer is not None:
        tokenizer.normalizer = splitting.normalizer()
    tokenizer.pre_tokenizer = splitting.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(metadata: GgufMetadata, tokens: list[str], types: list[int]) -> Tokenizer:
    for key in ("precompiled_charsmap", "remove_extra_whitespaces"):
        if metadata.values.get(_PREFIX + key):
            raise ModelError(
                "This SentencePiece tokenizer changes the text first, which is not rebuilt from GGUF.",
                where=f"{metadata.path}, key {_PREFIX}{key}",
                expected="not set",
                fix="use the Hugging Face directory of this model",
            )
    scores = _table(metadata, "scores", float)
    if len(scores) != len(tokens):
        raise _table_length(metadata, "scores", len(tokens), len(scores))
    unknown = _role(metadata, "unknown", len(tokens), 0)
    merges = score_merges(tokens, scores, types)
    unknown_text = None if unknown is None else tokens[unknown]
    tokenizer = Tokenizer(_bpe(metadata, tokens, merges, unk_token=unknown_text, fuse_unk=True, byte_fallback=_BYTE in types))
    prefix = metadata.get(_PREFIX + "add_space_prefix", bool, True)
    escape = normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), escape]) if prefix else escape
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return tokenizer


def score_merges(tokens: list[str], scores: list[float], types: list[int]) -> list[tuple[str, str]]:
    """Merges in the order SentencePiece makes them: the pair whose joined piece has the highest score first.

    Every way to cut a piece in two pieces is a merge. Among equal scores longer left parts go first, as in the published
    conversions of Llama 2 and Mistral tokenizers.
    """
    pieces = {text: score for text, score, kind in zip(tokens, scores, types, strict=True) if kind in (_NORMAL, _UNUSED)}
    found = [
        (score, text[:cut], text[cut:])
        for text, score in pieces.items()
        for cut in range(1, len(text))
        if text[:cut] in pieces and text[cut:] in pieces
    ]
    found.sort(key=lambda merge: (-merge[0], -len(merge[1]), -len(merge[2])))
    return [(left, right) for _, left, right in found]


def _bpe(metadata: GgufMetadata, tokens: list[str], merges: list[tuple[str, str]], **settings: Any) -> BPE:
    vocabulary = {text: token for token, text in enumerate(tokens)}
    for rank, (left, right) in enumerate(merges):
        if left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            raise ModelError(
                "A merge of the tokenizer joins pieces that are not in the vocabulary.",
                where=f"{metadata.path}, key {_PREFIX}merges[{rank}]",
                got=f"{left!r} + {right!r}",
                fix="fetch the file again",
            )
    return BPE(vocabulary, merges, **settings)


def _merges(metadata: GgufMetadata) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for rank, text in enumerate(_table(metadata, "merges", str)):
        # byte-level text has no spaces, but a piece may begin with one: llama.cpp looks from the second character on
        cut = text.find(" ", 1)
        if cut < 0:
            raise ModelError(
                "A merge of the tokenizer is not a pair.", where=f"{metadata.path}, key {_PREFIX}merges[{rank}]", got=repr(text)
            )
        found.append((text[:cut], text[cut + 1 :]))
    return found


def _splitting(metadata: GgufMetadata) -> Splitting:
    key = _PREFIX + "pre"
    name = metadata.get(key, str)
    if name not in SPLITTINGS:
        raise ModelError(
            "How this tokenizer splits text is not known.",
            where=f"{metadata.path}, key {key}",
            expected=", ".join(SPLITTINGS),
            got="nothing" if name is None else name,
            fix="use the Hugging Face directory of this model, or convert it again with a current llama.cpp",
        )
    return SPLITTINGS[name]


def _require_sound(metadata: GgufMetadata, tokens: list[str], types: list[int]) -> None:
    if len(types) != len(tokens):
        raise _table_length(metadata, "token_type", len(tokens), len(types))
    if len(set(tokens)) != len(tokens):
        seen: set[str] = set()
        twice = next(text for text in tokens if text in seen or seen.add(text))
        raise ModelError(
            "A token is in the vocabulary twice, so its id is not certain.",
            where=f"{metadata.path}, key {_PREFIX}tokens",
            got=repr(twice),
        )


def _table(metadata: GgufMetadata, name: str, kind: type) -> list[Any]:
    table = metadata.require(_PREFIX + name, list)
    if table and type(table[0]) is not kind:
        raise ModelError(
            "A table of the tokenizer has the wrong type.",
            where=f"{metadata.path}, key {_PREFIX}{name}",
            expected=f"an array of {kind.__name__}",
            got=f"an array of {type(table[0]).__name__}",
        )
    return table


def _table_length(metadata: GgufMetadata, name: str, expected: int, got: int) -> ModelError:
    return ModelError(
        "The tables of the tokenizer have different lengths.",
        where=f"{metadata.path}, key {_PREFIX}{name}",
        expected=f"{expected} values, one for each token",
        got=str(got),
        fix="fetch the file again",
    )


def _added(text: str, kind: int) -> AddedToken:
    return AddedToken(text, normalized=False, special=kind != _USER_DEFINED)


def _role(metadata: GgufMetadata, role: str, tokens: int, default: int | None = None) -> int | None:
    key = f"{_PREFIX}{role}_token_id"
    token = metadata.get(key, int, default)
    if token is not None and not 0 <= token < tokens:
        raise ModelError(
            "A special token is outside the vocabulary.",
            where=f"{metadata.path}, key {key}",
            expected=f"an id below {tokens}",
            got=str(token),
        )
    return token


def _special_tokens(metadata: GgufMetadata, tokens: list[str]) -> dict[str, str]:
    found = {role: _role(metadata, key, len(tokens)) for role, key in _ROLES.items()}
    return {role: tokens[token] for role, token in found.items() if token is not None}


def _end_tokens(metadata: GgufMetadata, tokens: list[str], types: list[int]) -> tuple[int, ...]:
    declared = [_role(metadata, role, len(tokens)) for role in ("eos", "eot", "eom")]
    known = [token for token, text in enumerate(tokens) if text in _END_TEXTS and types[token] == _CONTROL]
    return tuple(dict.fromkeys(token for token in (*declared, *known) if token is not None))
