"""Slow, plain tokenizers to compare with: written from the algorithms' descriptions, without the `tokenizers` library.

Byte-level BPE: Radford et al. 2019 (GPT-2); the patterns are those llama.cpp lists for each `tokenizer.ggml.pre`, applied
one after the other, each cutting the pieces the one before left. SentencePiece BPE: Kudo and Richardson 2018.
"""

from __future__ import annotations

import unicodedata
from itertools import pairwise

import regex

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_CASES = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"

PATTERNS = {
    "gpt-2": [GPT2],
    "smollm": [r"\p{N}", GPT2],
    "llama-bpe": [_CASES + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST],
    "qwen2": [_CASES + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST],
    "tekken": [
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
        + r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ],
    "default": [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"],
}


def split(text: str, patterns: list[str]) -> list[str]:
    """Pieces of `text`: matches of each pattern, and what lies between them."""
    pieces = [text]
    for pattern in patterns:
        pieces = [part for piece in pieces for part in _cut(piece, pattern) if part]
    return pieces


def _cut(piece: str, pattern: str) -> list[str]:
    parts, at = [], 0
    for match in regex.finditer(pattern, piece):
        parts += [piece[at : match.start()], match[0]]
        at = match.end()
    return [*parts, piece[at:]]


def byte_symbols() -> dict[int, str]:
    """GPT-2's printable character for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + n) for n, byte in enumerate(others)}}


class ByteLevelBpe:
    def __init__(self, tokens: list[str], merges: list[str], pre: str, special: set[str]) -> None:
        self._ids = {text: token for token, text in enumerate(tokens)}
        self._ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
        self._patterns, self._symbols = PATTERNS[pre], byte_symbols()
        self._whole, self._compose = pre in ("llama-bpe", "tekken"), pre == "qwen2"
        self._special = special

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in split_special(text, self._special):
            if part in self._special:
                ids.append(self._ids[part])
                continue
            part = unicodedata.normalize("NFC", part) if self._compose else part
            for piece in split(part, self._patterns):
                ids += self._merge("".join(self._symbols[byte] for byte in piece.encode()))
        return ids

    def _merge(self, word: str) -> list[int]:
        if self._whole and word in self._ids:
            return [self._ids[word]]
        symbols = list(word)
        while len(symbols) > 1:
            ranked = [(self._ranks.get(pair, len(self._ranks)), at) for at, pair in enumerate(pairwise(symbols))]
            rank, at = min(ranked)
            if rank == len(self._ranks):
                break
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        return [self._ids[symbol] for symbol in symbols]


class SentencePieceBpe:
    """Joins, again and again, the neighbours whose joined piece has the highest score; the leftmost of equals."""

    def __init__(self, tokens: list[str], scores: list[float], special: set[str], *, prefix: bool) -> None:
        self._ids = {text: token for token, text in enumerate(tokens)}
        self._scores = dict(zip(tokens, scores, strict=True))
        self._special, self._prefix = special, prefix

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in split_special(text, self._special):
            ids += [self._ids[part]] if part in self._special else self._plain(part)
        return ids

    def _plain(self, text: str) -> list[int]:
        symbols = list(((" " if self._prefix else "") + text).replace(" ", "▁"))
        while True:
            joined = [(-self._scores[a + b], at) for at, (a, b) in enumerate(pairwise(symbols)) if a + b in self._ids]
            if not joined:
                break
            at = min(joined)[1]
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        return [token for symbol in symbols for token in self._of(symbol)]

    def _of(self, symbol: str) -> list[int]:
        if symbol in self._ids:
            return [self._ids[symbol]]
        return [self._ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]


def split_special(text: str, special: set[str]) -> list[str]:
    if not special:
        return [text] if text else []
    longest_first = sorted(special, key=lambda token: (-len(token), token))
    pattern = "(" + "|".join(regex.escape(token, literal_spaces=True) for token in longest_first) + ")"
    return [part for part in regex.split(pattern, text) if part]
