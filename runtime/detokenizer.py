"""Tokens to text while they arrive: never half a character, constant work per token."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from .tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"
_CONTEXT_TOKENS = 6  # prompt tokens that settle the space before the first generated word
_LONGEST_CHARACTER = 4  # bytes, hence tokens
_HELD_TOKENS = 32  # held longer than this, bytes are not an unfinished character but invalid


class Detokenizer(Protocol):
    """`push` returns the text that a token completes (often ""); `flush` what was held back at the end."""

    def push(self, token: int) -> str: ...

    def flush(self) -> str: ...


def detokenizer(
    tokenizer: Tokenizer | None,
    prompt: Sequence[int] = (),
    *,
    skip_special_tokens: bool = True,
    shown: frozenset[int] = frozenset(),
) -> Detokenizer:
    """The detokenizer for text that continues `prompt`; without a tokenizer every text is empty. `shown` are special tokens
    that are not skipped."""
    if tokenizer is None:
        return _NoText()
    skipped = tokenizer.special_tokens - shown if skip_special_tokens else frozenset[int]()
    if tokenizer.byte_level:
        return ByteLevelDetokenizer(tokenizer, skipped)
    return WindowDetokenizer(tokenizer, prompt, skipped)


class _NoText:
    def push(self, token: int) -> str:
        return ""

    def flush(self) -> str:
        return ""


class ByteLevelDetokenizer:
    """For vocabularies whose tokens are byte strings: an incremental UTF-8 decoder over their concatenation."""

    def __init__(self, tokenizer: Tokenizer, skipped: frozenset[int] = frozenset()) -> None:
        self._tokenizer, self._skipped = tokenizer, skipped
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return "" if token in self._skipped else self._utf8.decode(self._tokenizer.token_bytes(token))

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class WindowDetokenizer:
    """For any other decoder (sentencepiece-like): decode the last piece with and without the new tokens, emit the difference.

    A token's text depends on its neighbours there (spaces, runs of byte tokens), so the window keeps the piece emitted
    last as context. Text ending in U+FFFD may be an unfinished character and is held.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = (), skipped: frozenset[int] = frozenset()) -> None:
        self._tokenizer, self._skipped = tokenizer, skipped
        self._window = [token for token in prompt[-_CONTEXT_TOKENS:] if token not in self._skipped]
        self._context = len(self._window)
        self._known = self._decode(self._window)

    def push(self, token: int) -> str:
        if token in self._skipped:
            return ""
        self._window.append(token)
        text = self._decode(self._window)
        if not text.endswith(_REPLACEMENT):
            return self._emit(text, len(self._window))
        if len(self._window) - self._context < _HELD_TOKENS:
            return ""
        return self._emit_invalid()

    def flush(self) -> str:
        return self._emit(self._decode(self._window), len(self._window))

    def _emit_invalid(self) -> str:
        """Emit what cannot be the start of a character: cut where the fewest bytes are left without a meaning."""
        ends = range(len(self._window), len(self._window) - _LONGEST_CHARACTER, -1)
        texts = {end: self._decode(self._window[:end]) for end in ends}
        end = min(ends, key=lambda end: texts[end].count(_REPLACEMENT))
        return self._emit(texts[end], end)

    def _emit(self, text: str, end: int) -> str:
        same = len(self._known) if text.startswith(self._known) else _common_prefix(text, self._known)
        self._window, held = self._window[self._context : end], self._window[end:]
        self._context, self._known = len(self._window), self._decode(self._window)
        self._window += held
        return text[same:]

    def _decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=False)


def _common_prefix(first: str, second: str) -> int:
    length = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        length += 1
    return length
