"""What the spans of prompts hold: contents are 64-bit names of endless token streams, equal names equal tokens.

A name with the top bit is known to all sessions (a system prompt, tools); one without it belongs to one session, or to whoever
names the same block in a trace of global blocks.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .session import Prompt

_SHARED = np.uint64(1 << 63)
_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Token ids that prompts are made of: `size` of them from `first` on. The defaults are ordinary tokens of any model."""

    first: int = 300
    size: int = 700


def named(*parts: object, shared: bool = False) -> int:
    """The content that goes by this name."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    value = int.from_bytes(digest, "little") & ~int(_SHARED)
    return value | int(_SHARED) if shared else value


def derived(seed: int, numbers: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A content for each number, in the family of `seed`; shared where the seed is."""
    mixed = _mix(numbers.astype(np.uint64) * _STEP + np.uint64(seed))
    return mixed | _SHARED if seed & int(_SHARED) else mixed & ~_SHARED


def renamed(contents: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """The same prompt of another session: its own contents become others, shared ones stay."""
    own = (contents & _SHARED) == 0
    return np.where(own, _mix(contents ^ np.uint64(seed)) & ~_SHARED, contents)


def reseeded(contents: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Other contents throughout; what was equal stays equal, what was shared stays shared."""
    return (_mix(contents ^ np.uint64(named("seed", seed))) & ~_SHARED) | (contents & _SHARED)


def tokens_of(prompt: Prompt, vocabulary: Vocabulary, start_span: int = 0) -> NDArray[np.int32]:
    """The tokens (int32) from the first of span `start_span` on."""
    ends = prompt.ends[start_span:]
    if not len(ends):
        return np.empty(0, np.int32)
    begin = int(prompt.ends[start_span - 1]) if start_span else 0
    starts = np.concatenate(([begin], ends[:-1]))
    lengths = ends - starts
    within = np.arange(begin, ends[-1]) - np.repeat(starts, lengths)
    mixed = _mix(within.astype(np.uint64) * _STEP + np.repeat(prompt.contents[start_span:], lengths))
    return (mixed % np.uint64(vocabulary.size)).astype(np.int32) + np.int32(vocabulary.first)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser: every bit of the result depends on every bit of the value."""
    values = (values ^ (values >> np.uint64(30))) * _FIRST
    values = (values ^ (values >> np.uint64(27))) * _SECOND
    return values ^ (values >> np.uint64(31))
