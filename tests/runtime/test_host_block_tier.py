"""The tier of KV blocks where caches are in the host's memory: a sequence that was away gives the same bits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace
from tokenspeed.plans.errors import MemoryPlanError
from tokenspeed.plans.program import DTYPE_BYTES
from tokenspeed.plans.schema import KvGroup, WindowPool
from tokenspeed.runtime.executor import PlanExecutor, load_executor
from tokenspeed.runtime.fixed_batch import Rows, fixed_batch
from tokenspeed.runtime.host_block_tier import host_block_tier
from tokenspeed.runtime.scheduling.step import BlockCopies, empty_step
from tokenspeed.runtime.static_memory import _caches

from ..plans.sample_plan import sample_manifest
from .llama_plan import Llama, plan_of, random_sources, write_safetensors

BLOCKS, HOST_BLOCKS = 8, 5
FIRST, SECOND = [5, 17, 3, 90, 41, 8, 8, 60, 2, 33, 71], [1, 2, 3, 4, 5, 6, 7, 11, 12]


def copies(device: Sequence[int], host: Sequence[int], pool: int = 0) -> tuple[BlockCopies, ...]:
    return (BlockCopies(np.array(device, np.int32), np.array(host, np.int32), pool),)


def batch_of(*rows: Rows) -> Any:
    return fixed_batch(rows, BLOCKS, Llama.block_tokens)


@pytest.fixture(scope="module")
def executor(tmp_path_factory: pytest.TempPathFactory) -> PlanExecutor:
    weights = tmp_path_factory.mktemp("weights") / "model.safetensors"
    write_safetensors(weights, random_sources(Llama()))
    kv = msgspec.structs.replace(Llama().manifest().kv, host_blocks=HOST_BLOCKS)
    return load_executor(plan_of(Llama(), kv=kv), str(weights), None, lambda _phase: None, host_tier=True)


def test_prefill_and_decode_after_a_return_have_the_same_bits(executor: PlanExecutor) -> None:
    executor.logits_for(batch_of(Rows(0, 0, FIRST[:8])))
    chunk = executor.logits_for(batch_of(Rows(0, 8, FIRST[8:])))
    token = executor.logits_for(batch_of(Rows(0, len(FIRST), [50])))
    # two full blocks go to the host, beside another's rows; their places are written over, and they come back elsewhere
    executor.logits_for(batch_of(Rows(0, 0, FIRST[:8])))
    executor.logits_for(replace(batch_of(Rows(1, 0, SECOND[:4])), saves=copies([0, 1], [3, 0])))
    executor.logits_for(batch_of(Rows(0, 0, SECOND)))
    executor.run(replace(empty_step(0), loads=copies([17, 16], [0, 3])))
    assert np.array_equal(executor.logits_for(batch_of(Rows(2, 8, FIRST[8:]))), chunk)
    assert np.array_equal(executor.logits_for(batch_of(Rows(2, len(FIRST), [50]))), token)
    executor.logits_for(batch_of(Rows(2, 0, SECOND)))
    again = replace(batch_of(Rows(2, 8, FIRST[8:])), loads=copies([16, 17], [3, 0]))  # in the step whose rows read them
    assert np.array_equal(executor.logits_for(again), chunk)


def test_the_bytes_of_host_blocks_are_all_of_them_and_may_go_elsewhere(executor: PlanExecutor) -> None:
    """As the tier on disk reads and writes them."""
    executor.logits_for(batch_of(Rows(0, 0, FIRST[:8])))
    chunk = executor.logits_for(batch_of(Rows(0, 8, FIRST[8:])))
    executor.run(replace(empty_step(0), saves=copies([0, 1], [3, 0])))
    for source, target in ((3, 1), (0, 4)):
        found, there = executor.host_block(source), executor.host_block(target)
        assert sum(part.nbytes for part in found) == Llama().manifest().kv.bytes_per_block
        for one, other in zip(found, there, strict=True):
            other[...] = one
            one[...] = 0
    executor.run(replace(empty_step(0), loads=copies([16, 17], [1, 4])))
    assert np.array_equal(executor.logits_for(batch_of(Rows(2, 8, FIRST[8:]))), chunk)


def test_a_step_that_fails_copies_nothing_that_counts(executor: PlanExecutor) -> None:
    with pytest.raises(ValueError, match="host blocks 5 to 5 of pool 0"):
        executor.run(replace(empty_step(0), loads=copies([3], [HOST_BLOCKS])))
    assert len(executor.run(replace(empty_step(0), loads=copies([3], [0]))).tokens) == 0


def test_an_executor_that_no_scheduler_uses_has_no_tier(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", random_sources(Llama()))
    kv = msgspec.structs.replace(Llama().manifest().kv, host_blocks=1 << 40)  # nothing could hold them
    weights = str(tmp_path / "model.safetensors")
    loaded = load_executor(plan_of(Llama(), kv=kv), weights, None, lambda _phase: None)
    with pytest.raises(ValueError, match="no host tier"):
        loaded.run(replace(empty_step(0), saves=copies([0], [0])))
    with pytest.raises(MemoryPlanError, match="smaller --host-kv"):
        load_executor(plan_of(Llama(), kv=kv), weights, None, lambda _phase: None, host_tier=True)


Order = Literal["token_major", "head_major"]


@pytest.mark.parametrize(("kind", "dtype", "order"), [
    ("paged", "bf16", "head_major"),
    ("paged", "f8e4m3", "token_major"),
    ("paged", "i8", "head_major"),
    ("latent", "bf16", "token_major"),
])  # fmt: skip
def test_blocks_of_all_kinds_go_and_come_back(kind: Any, dtype: Any, order: Order) -> None:
    """Two groups of different geometry, one of them with a window and a pool of its own; each pool's blocks go alone."""
    heads = 1 if kind == "latent" else 3
    whole = KvGroup(name="a", kind=kind, layers=(0, 2), heads=heads, head_dim=6, dtype=dtype, block_order=order)
    window = KvGroup(name="b", kind="paged", layers=(1,), heads=2, head_dim=4, dtype="f32", window=8, pool=1)
    base, tokens, caches = sample_manifest(), 4, 2 if kind == "paged" else 1
    sizes = [2 * caches * tokens * heads * 6 * DTYPE_BYTES[dtype], 2 * tokens * 2 * 4 * 4]
    kv = msgspec.structs.replace(
        base.kv,
        block_tokens=tokens,
        blocks=6,
        bytes_per_block=sizes[0],
        groups=(whole, window),
        host_blocks=3,
        windows=(WindowPool(window=8, blocks=4, bytes_per_block=sizes[1], host_blocks=4),),
    )
    manifest = msgspec.structs.replace(base, kv=kv)
    arrays = _caches(manifest, None)
    random = np.random.default_rng(3)
    for array in arrays.values():
        values = random.integers(0, 255, (*array.shape, array.data.itemsize), dtype=np.uint8)
        array.data[:] = values.view(array.data.dtype).reshape(array.shape)
    tier = host_block_tier(manifest, arrays)
    before = {name: array.data.copy() for name, array in arrays.items()}
    tier.begin(replace(empty_step(0), saves=copies([1, 2, 5], [2, 0, 1]) + copies([3], [3], pool=1)), {})
    for array in arrays.values():
        array.data[:] = 0
    tier.begin(replace(empty_step(1), loads=copies([0, 4], [2, 1]) + copies([1], [3], pool=1)), {})
    for name, array in arrays.items():
        moved = {1: 3} if name.endswith(".1") else {0: 1, 4: 5}
        for block in range(len(array.data)):
            expected = before[name][moved[block]] if block in moved else np.zeros_like(array.data[block])
            assert array.data[block].tobytes() == expected.tobytes()
    tier.close()
