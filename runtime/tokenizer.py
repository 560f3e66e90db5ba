"""Text to tokens and back, by the plan's own tokenizer.json (Hugging Face `tokenizers` format)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import tokenizers

from ..plans.errors import PlanError
from .segment_tokens import SegmentTokens, cuts_of


class Tokenizer:
    """One model's tokenizer. Thread-safe for reading; `encode` releases the GIL.

    `begin_token` is put before prompts that do not start with it (None: nothing is added). Raises PlanError when `data`
    is not a tokenizer.json.
    """

    def __init__(self, data: bytes, begin_token: int | None = None) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(bytes(data).decode("utf-8"))
            file = msgspec.json.decode(data, type=_TokenizerFile)
            cuts = cuts_of(file.added_tokens, file.normalizer, file.pre_tokenizer)
        except Exception as error:  # the library raises bare Exception on bad files
            raise PlanError("the plan's tokenizer cannot be read", where="tokenizer.json", got=str(error)) from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.begin_token = begin_token
        self.byte_level = _is_byte_level(file.decoder)
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_tokens = frozenset(token for token, info in added.items() if info.special)
        self._bytes: dict[int, bytes] = {}
        self._segments = SegmentTokens(self._encode, cuts) if cuts is not None else None

    @property
    def vocabulary(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, add_begin_token: bool, scope: str | None = None) -> list[int]:
        """Tokens of `text`; special tokens spelled in the text count as special tokens.

        With a `scope` its parts are remembered, so that who sends it again with more behind it waits for the new part alone, if
        in the same scope.
        """
        tokens = self._encode(text) if scope is None or self._segments is None else self._segments.encode(text, scope)
        if add_begin_token and self.begin_token is not None and tokens[:1] != [self.begin_token]:
            return [self.begin_token, *tokens]
        return tokens

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)

    def token_id(self, text: str) -> int | None:
        """The token that is spelled exactly so."""
        return self._tokenizer.token_to_id(text)

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes a token stands for; part of a character in byte-level vocabularies, b"" when unknown."""
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = self._compute_bytes(token)
        return known

    def _compute_bytes(self, token: int) -> bytes:
        piece = self._tokenizer.id_to_token(token)
        if piece is None:
            return b""
        if self.byte_level:
            spelled = [_BYTE_OF_CHARACTER.get(character) for character in piece]
            known = [value for value in spelled if value is not None]
            return bytes(known) if len(known) == len(spelled) else piece.encode()
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes.fromhex(piece[3:5])
        return piece.replace("▁", " ").encode()


class _TokenizerFile(msgspec.Struct):
    decoder: dict[str, Any] | None = None
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    added_tokens: list[dict[str, Any]] = []


def _is_byte_level(decoder: Any) -> bool:
    """Whether decoding is "concatenate the bytes of all tokens, then UTF-8", and nothing else."""
    if not isinstance(decoder, dict):
        return False
    if decoder.get("type") == "Sequence":
        parts = decoder.get("decoders")
        return isinstance(parts, list) and len(parts) == 1 and _is_byte_level(parts[0])
    return decoder.get("type") == "ByteLevel"


def _byte_alphabet() -> dict[str, int]:
    """The character that spells each byte in byte-level vocabularies (GPT-2's table): printable ones spell themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in set(printable)]
    return {chr(value): value for value in printable} | {chr(256 + n): value for n, value in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_alphabet()
