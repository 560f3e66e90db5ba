"""Tokens of texts that come again longer: an agent sends its whole conversation with every turn, and most of it is known already.

Where a special token is spelled in a text, tokenizers of the kinds that `cuts_of` accepts begin anew: what lies between two of
them has the same tokens whatever surrounds it. So each such segment is tokenized once, and kept while it is used.
"""

from __future__ import annotations

import re
from array import array
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from threading import Lock
from typing import Any

_SHORT = 64
"""Characters of segments that are not worth keeping."""

_PRE_TOKENIZERS = ("ByteLevel", "Split", "Digits")
_NORMALIZERS = ("NFC", "NFD", "NFKC", "NFKD")


def cuts_of(added: Sequence[Mapping[str, Any]], normalizer: Any, pre_tokenizer: Any) -> re.Pattern[str] | None:
    """Where the texts of a tokenizer.json with these parts may be cut; None when segments depend on what surrounds them.

    The library takes special tokens out first, the leftmost and of these the longest, and treats what is left piece by piece.
    So pieces are independent unless special tokens take spaces with them, or a pre-tokenizer treats the first piece apart.
    """
    cutting = [token for token in added if not token.get("normalized")]
    if not cutting or any(token.get(name) for token in cutting for name in ("single_word", "lstrip", "rstrip")):
        return None
    if not (normalizer is None or _all_of(normalizer, "normalizers", _NORMALIZERS)):
        return None
    if not _all_of(pre_tokenizer, "pretokenizers", _PRE_TOKENIZERS):
        return None
    spelled = sorted((str(token.get("content")) for token in cutting), key=len, reverse=True)
    return re.compile("|".join(re.escape(text) for text in spelled))


def _all_of(part: Any, parts: str, kinds: Sequence[str]) -> bool:
    """Whether a part of a tokenizer.json, or all it is made of, is of these kinds, and puts no space before texts."""
    if not isinstance(part, dict):
        return False
    if part.get("type") == "Sequence":
        inner = part.get(parts)
        return isinstance(inner, list) and all(_all_of(item, parts, kinds) for item in inner)
    return part.get("type") in kinds and not part.get("add_prefix_space")


class SegmentTokens:
    """Tokenizes by `encode`, cut at `cuts`. Keeps segments of `most` characters in all, those used last. Any thread may call it.

    Who asks in another scope finds nothing of this one's: how long an answer takes tells nobody what others have sent.
    """

    def __init__(self, encode: Callable[[str], list[int]], cuts: re.Pattern[str], most: int = 64 << 20) -> None:
        self._encode, self._cuts, self._most = encode, cuts, most
        self._known: OrderedDict[tuple[str, str], array[int]] = OrderedDict()
        self._characters = 0
        self._lock = Lock()

    def __len__(self) -> int:
        """Segments that are kept."""
        return len(self._known)

    def encode(self, text: str, scope: str) -> list[int]:
        """The tokens of `text`."""
        begins = [0, *(match.start() for match in self._cuts.finditer(text)), len(text)]
        tokens: array[int] = array("i")
        done = 0
        for begin, end in pairwise(begins):
            if end - begin >= _SHORT:
                if begin > done:
                    tokens.extend(self._encode(text[done:begin]))
                tokens.extend(self._segment(scope, text[begin:end]))
                done = end
        if done < len(text):
            tokens.extend(self._encode(text[done:]))
        return tokens.tolist()

    def _segment(self, scope: str, segment: str) -> array[int]:
        found = self._find(scope, segment)
        if found is None:
            found = array("i", self._encode(segment))
            self._keep(scope, segment, found)
        return found

    def _find(self, scope: str, segment: str) -> array[int] | None:
        with self._lock:
            found = self._known.get((scope, segment))
            if found is not None:
                self._known.move_to_end((scope, segment))
            return found

    def _keep(self, scope: str, segment: str, tokens: array[int]) -> None:
        with self._lock:
            if (scope, segment) not in self._known and len(segment) <= self._most:
                self._known[scope, segment] = tokens
                self._characters += len(segment)
            while self._characters > self._most:
                (_, oldest), _ = self._known.popitem(last=False)
                self._characters -= len(oldest)
