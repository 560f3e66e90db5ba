"""KV caches in both orders of their blocks: one shape for functions, the planned bytes in memory."""

from __future__ import annotations

import pytest
from tokenspeed.runtime.static_memory import allocate

from .llama_plan import Llama, head_major, plan_of


@pytest.mark.parametrize("order", ["token_major", "head_major"])
def test_caches_have_one_shape_whatever_their_order(order: str) -> None:
    shape = Llama()
    kv = shape.manifest().kv if order == "token_major" else head_major(shape.manifest().kv)
    caches = {name: array for name, array in allocate(plan_of(shape, kv=kv)).state.items() if name.startswith("kv.")}
    assert sorted(caches) == ["kv.k.0", "kv.k.1", "kv.v.0", "kv.v.1"]
    tokens, heads, size = shape.block_tokens, shape.kv_heads, shape.head_dim
    inside = (size, tokens * size) if order == "head_major" else (heads * size, size)
    for array in caches.values():
        assert array.shape == (shape.blocks, tokens, heads, size) and not array.data.any()
        assert array.data.strides == tuple(4 * stride for stride in (tokens * heads * size, *inside, 1))
        assert tuple(array.tensor.shape) == array.shape
    assert sum(array.data.nbytes for array in caches.values()) == kv.blocks * kv.bytes_per_block
