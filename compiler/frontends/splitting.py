"""How byte-level BPE tokenizers split text before merging, by the name GGUF files give it (`tokenizer.ggml.pre`).

Each entry is what the named family's published tokenizer.json does (for "default": what llama.cpp does with that name).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
LLAMA3 = _WORDS % r"\p{N}{1,3}"
QWEN2 = _WORDS % r"\p{N}"

_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
TEKKEN = rf"{_LEAD}{_UPPER}*{_LOWER}+|{_LEAD}{_UPPER}+{_LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"

DEFAULT_STEPS = (
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
)


@dataclass(frozen=True)
class Splitting:
    """`ignore_merges`: a whole piece that is in the vocabulary is one token, whatever the merges say.

    `adds_begin_token` holds where the file itself does not say.
    """

    pre_tokenizer: Callable[[], PreTokenizer]
    normalizer: Callable[[], Normalizer] | None = None
    ignore_merges: bool = False
    adds_begin_token: bool = False


def _by_patterns(*patterns: str) -> Callable[[], PreTokenizer]:
    def build() -> PreTokenizer:
        steps: list[PreTokenizer] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
        return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    return build


def _gpt2() -> PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _single_digits() -> PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


_LLAMA3 = Splitting(_by_patterns(LLAMA3), ignore_merges=True, adds_begin_token=True)

SPLITTINGS: dict[str, Splitting] = {
    "default": Splitting(_by_patterns(*DEFAULT_STEPS)),
    "gpt-2": Splitting(_gpt2),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    # Qwen's own tokenizer composes text first (NFC); llama.cpp leaves it out, so ids differ on decomposed accents
    "qwen2": Splitting(_by_patterns(QWEN2), normalizer=normalizers.NFC),
    "smollm": Splitting(_single_digits),
    "starcoder": Splitting(_single_digits),
    "tekken": Splitting(_by_patterns(TEKKEN), ignore_merges=True, adds_begin_token=True),
}
