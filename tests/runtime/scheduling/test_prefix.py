from __future__ import annotations

from hashlib import sha256

import numpy as np
from tokenspeed.runtime.scheduling.prefix import PrefixChain, chain_seed, token_bytes, unit_digest


def test_digests_are_as_documented():
    seed = sha256(b"tokenspeed-kv-1" + (2).to_bytes(8, "little") + b"kv" + (6).to_bytes(8, "little") + b"tenant").digest()
    assert chain_seed("kv", "tenant") == seed
    tokens = np.array([1, 2, 3, 4, 5], dtype=np.int32)
    chain = PrefixChain(seed, 2)
    chain.extend(token_bytes(tokens))
    first = sha256(seed + bytes([1, 0, 0, 0, 2, 0, 0, 0])).digest()
    second = sha256(first + bytes([3, 0, 0, 0, 4, 0, 0, 0])).digest()
    assert chain.digests == [seed, first, second]
    assert len(chain) == 2 and list(chain.first(1)) == [seed, first]
    assert unit_digest(seed, token_bytes(tokens[:2])) == first


def test_seed_separates_compatibility_and_salt():
    assert len({chain_seed("ab", "c"), chain_seed("a", "bc"), chain_seed("", "abc"), chain_seed("abc", "")}) == 4


def test_a_chain_extended_in_pieces_is_the_chain_of_the_whole():
    tokens = np.arange(24, dtype=np.int32)
    whole, pieces = PrefixChain(b"seed", 4), PrefixChain(b"seed", 4)
    whole.extend(token_bytes(tokens))
    for start in range(0, 24, 8):
        pieces.extend(token_bytes(tokens[start : start + 8]))
    assert whole.digests == pieces.digests
