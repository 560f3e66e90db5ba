"""Sequences played on a KV manager alone, without a scheduler."""

from __future__ import annotations

import numpy as np
from tokenspeed.runtime.scheduling.kv import KvManager
from tokenspeed.runtime.scheduling.kv_integrity import check_kv
from tokenspeed.runtime.scheduling.prefix import PrefixChain, token_bytes
from tokenspeed.runtime.scheduling.retention import Owner
from tokenspeed.runtime.scheduling.sequence_blocks import NOBODY, Hits, SequenceBlocks


def chain_of(kv: KvManager, tokens: list[int], salt: str = "") -> tuple[PrefixChain, bytes]:
    encoded = token_bytes(np.array(tokens, dtype=np.int32))
    chain = PrefixChain(kv.seed(salt), kv.identity_tokens)
    chain.extend(encoded)
    return chain, encoded


def find(kv: KvManager, tokens: list[int], salt: str = "") -> Hits:
    chain, encoded = chain_of(kv, tokens, salt)
    return kv.lookup(chain.digests, encoded)


def compute(kv: KvManager, tokens: list[int], salt: str = "", owner: Owner | None = None) -> SequenceBlocks:
    """A sequence with these tokens: takes its hits, writes and seals the rest."""
    chain, encoded = chain_of(kv, tokens, salt)
    blocks = kv.open(kv.lookup(chain.digests, encoded), NOBODY if owner is None else owner)
    kv.grow(blocks, kv.blocks_for(len(tokens)) - len(blocks.indices()))
    size = 4 * kv.identity_tokens
    for unit in range(len(blocks.sealed), len(chain)):
        parent, digest = chain.digests[unit : unit + 2]
        kv.seal(blocks, digest, parent, encoded[unit * size : (unit + 1) * size])
    check_kv(kv)
    return blocks


def turn(kv: KvManager, session: str, tokens: list[int], hint: float = 0.0) -> SequenceBlocks:
    """A turn of a session (of none with "") that ends at once."""
    chain, _ = chain_of(kv, tokens)
    blocks = compute(kv, tokens, owner=Owner(session or "alone", bool(session), chain.digests, hint))
    kv.release(blocks, -1)
    check_kv(kv)
    return blocks
