"""The identity of cached KV: chained SHA-256 over units of tokens, seeded with what makes KV interchangeable.

digest(0) = SHA-256(SHA-256("tokenspeed-kv-1" | compatibility | salt) | unit 0), digest(i) = SHA-256(digest(i-1) | unit i).
Strings are UTF-8 with their length before them; tokens are int32, little-endian. SHA-256: FIPS 180-4.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

TOKEN_BYTES = 4
_TOKEN = np.dtype("<i4")


def token_bytes(tokens: NDArray[np.int32]) -> bytes:
    return tokens.astype(_TOKEN, copy=False).tobytes()


def chain_seed(compatibility: str, salt: str) -> bytes:
    """The parent of a chain's first unit. Tenants with different salts never share a digest."""
    digest = sha256(b"tokenspeed-kv-1")
    for text in (compatibility, salt):
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.digest()


def unit_digest(parent: bytes, tokens: bytes) -> bytes:
    return sha256(parent + tokens).digest()


class PrefixChain:
    """The digests of a sequence's full units, each computed once. `digests[0]` is the seed, `digests[i + 1]` of unit i."""

    __slots__ = ("_unit_bytes", "digests")

    def __init__(self, seed: bytes, unit_tokens: int) -> None:
        self._unit_bytes = unit_tokens * TOKEN_BYTES
        self.digests = [seed]

    def __len__(self) -> int:
        return len(self.digests) - 1

    def extend(self, tokens: bytes) -> None:
        """Hash on: `tokens` starts where the chain ends; a partial unit at its end is left out."""
        parent, size = self.digests[-1], self._unit_bytes
        for start in range(0, len(tokens) - size + 1, size):
            parent = unit_digest(parent, tokens[start : start + size])
            self.digests.append(parent)

    def link(self, unit: int, tokens: bytes) -> tuple[bytes, bytes]:
        """Parent and digest of a unit with these tokens, of which all before it are hashed."""
        if unit == len(self):
            self.digests.append(unit_digest(self.digests[-1], tokens))
        return self.digests[unit], self.digests[unit + 1]

    def first(self, units: int) -> Sequence[bytes]:
        """Seed and digests of the first `units` units."""
        return self.digests[: units + 1]
