"""The KV caches of a group: their names and sizes (docs/plan-format.md, "KV groups")."""

from __future__ import annotations

from collections.abc import Iterator

from .program import DTYPE_BYTES
from .schema import KvGroup


def cache_names(group: KvGroup) -> Iterator[str]:
    """The caches of all layers: keys and values, or one of latents."""
    for layer in group.layers:
        if group.kind == "latent":
            yield f"kv.latent.{layer}"
        else:
            yield f"kv.k.{layer}"
            yield f"kv.v.{layer}"


def block_bytes(group: KvGroup, block_tokens: int) -> int:
    """Bytes of one block over all layers of the group."""
    caches = sum(1 for _ in cache_names(group))
    return caches * block_tokens * group.heads * group.head_dim * DTYPE_BYTES[group.dtype]
