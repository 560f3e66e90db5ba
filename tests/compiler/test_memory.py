"""The memory plan adds up, fills what it is given, and refuses by exactly what is missing."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenspeed.compiler.kv_pools import Demand, Room, host_blocks, pool_blocks
from tokenspeed.compiler.memory import (
    ATTENTION_SCRATCH,
    BLOCK_TOKENS,
    LIBRARY_SCRATCH,
    bytes_per_block,
    fixed_memory,
    with_kv,
)
from tokenspeed.passes.schedule import TrafficProfile, schedule
from tokenspeed.plans.errors import MemoryPlanError, UsageError
from tokenspeed.plans.program import Bucket, Buffer, Call, Program, StepInput
from tokenspeed.plans.recipe import Source
from tokenspeed.plans.schema import Constant, KvGroup, MemoryPlan, Weight

LIMITS = schedule(TrafficProfile(), 1000, 4, 64)


def fixed(*calls: Call) -> MemoryPlan:
    program = Program("step", 0, (Buffer("x", "f32", ("rows", 10)), Buffer("logits", "bf16", ("logit_rows", 99))), (), calls, (
        Bucket(1, 1, (0, 64), 300), Bucket(8, 4, (0, 320), 1112),
    ))  # fmt: skip
    weights = (
        Weight(name="w.{i}", shape=(4, 5), dtype="bf16", bytes=40, recipe=Source("w.{i}"), layers=(0, 1, 2)),
        Weight(name="head", shape=(4, 5), dtype="f32", bytes=80, recipe=Source("head")),
    )
    constant = Constant(name="c", dtype="f32", shape=(8,), entry="c")
    return fixed_memory(weights, [constant], [program], [StepInput("i", "i64", (3, 2))], [Buffer("s", "i32", (7,))], 1000)


def test_every_purpose_is_counted_once() -> None:
    found = fixed()
    expected = {"weights": 3 * 40 + 80, "constants": 32, "arena": 1112, "inputs": 48, "slots": 28, "kv": 0, "communication": 0}
    assert {name: getattr(found, name) for name in expected} == expected
    assert (found.workspace, found.overhead) == (max(8 * 10 * 4, 4 * 99 * 2), 1000)


def test_library_functions_keep_scratch_of_their_own() -> None:
    """A program without calls counts as native."""
    assert fixed(Call("linear", ("x",), ("logits",))).workspace == ATTENTION_SCRATCH + LIBRARY_SCRATCH + max(
        8 * 10 * 4, 4 * 99 * 2
    )
    assert fixed(Call("native.linear", ("x",), ("logits",))).workspace == max(8 * 10 * 4, 4 * 99 * 2)


def test_a_block_holds_keys_and_values_of_all_layers() -> None:
    groups = [
        KvGroup(name="full", kind="paged", layers=(0, 2), heads=2, head_dim=8, dtype="f32", window=None),
        KvGroup(name="window5", kind="paged", layers=(1,), heads=1, head_dim=4, dtype="bf16", window=5),
    ]
    assert bytes_per_block(groups) == BLOCK_TOKENS * (2 * 2 * 2 * 8 * 4 + 2 * 1 * 4 * 2)


@given(st.integers(1, 1 << 20), st.integers(0, 1 << 32), st.integers(2, 1 << 16))
def test_memory_is_filled_and_never_exceeded(block_bytes: int, spare: int, max_context: int) -> None:
    plan = fixed()
    least = -(-max_context // BLOCK_TOKENS)
    memory = plan.total + least * block_bytes + spare
    (blocks,) = pool_blocks([Room(plan, (block_bytes,))], Demand(LIMITS, max_context), memory)
    total = with_kv(plan, block_bytes * blocks).total
    assert blocks >= least and total <= memory < total + block_bytes


@given(st.integers(1, 1 << 20), st.integers(1, 1 << 20))
def test_what_is_missing_is_said(block_bytes: int, missing: int) -> None:
    plan = fixed()
    memory = plan.total + 16 * block_bytes - missing
    with pytest.raises(MemoryPlanError, match="does not fit") as refused:
        pool_blocks([Room(plan, (block_bytes,))], Demand(LIMITS, 1000), memory)
    error = refused.value
    assert re.search(r"\d.* too much", error.what) and "KV of one full context" in error.expected and "--memory" in error.fix


def test_without_a_limit_the_pool_is_twice_the_live_tokens_of_the_traffic() -> None:
    limits = schedule(TrafficProfile(prompt_tokens=640, output_tokens=64, concurrency=3), 1000, 4, 64)
    rooms = [Room(fixed(), (1,))]
    assert pool_blocks(rooms, Demand(limits, 1000), None) == (2 * 3 * 11,)
    assert pool_blocks(rooms, Demand(limits, 100, groups=3), None) == (2 * 11,), "a group's share"
    assert pool_blocks(rooms, Demand(limits, 100_000), None) == (1563,), "one full context at least"


@given(
    st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 1 << 20), st.integers(0, 1 << 20)), min_size=1, max_size=3),
    st.integers(0, 1 << 32),
    st.integers(700, 1 << 16),
)
def test_pools_of_windows_share_the_memory(stages: list[tuple[int, ...]], spare: int, max_context: int) -> None:
    """Each pool holds what one sequence needs, no stage's memory is exceeded, and what windows cannot need is pool 0's."""
    plan, demand = fixed(), Demand(LIMITS, max_context, windows=(100, 500), stages=len(stages))
    rooms = [Room(plan, sizes) for sizes in stages]
    floors = (demand.least, *demand.floors)
    memory = max(plan.total + sum(a * b for a, b in zip(floors, sizes, strict=True)) for sizes in stages) + spare
    blocks = pool_blocks(rooms, demand, memory)
    assert all(count >= floor for count, floor in zip(blocks, floors, strict=True))
    totals = [plan.total + sum(a * b for a, b in zip(blocks, sizes, strict=True)) for sizes in stages]
    assert max(totals) <= memory
    if any(sizes[0] for sizes in stages):
        most = [tail * LIMITS.max_sequences + demand.in_flight for tail in demand.tails]
        assert all(count <= max(bound, floor) for count, bound, floor in zip(blocks[1:], most, demand.floors, strict=True))
        assert min((memory - total) // sizes[0] for total, sizes in zip(totals, stages, strict=True) if sizes[0]) == 0


def test_what_each_pool_gets() -> None:
    """For windows what running sequences can need, if there is room; else as many of the expected length fit all pools."""
    limits = schedule(TrafficProfile(prompt_tokens=6000, output_tokens=400), 100_000, 8, 512)
    demand, room = Demand(limits, 100_000, windows=(1024,)), Room(fixed(), (10, 30))
    tail, in_flight = 18, 2 * 520 // 64 + 1
    assert demand.tails == (tail,) and demand.in_flight == in_flight
    memory = room.fixed.total + 1_000_000
    windows = 8 * tail + in_flight
    assert pool_blocks([room], demand, memory) == ((1_000_000 - 30 * windows) // 10, windows)
    tight = room.fixed.total + 20_000
    blocks, windows = pool_blocks([room], demand, tight)
    assert windows < 8 * tail + in_flight and blocks == (20_000 - 30 * windows) // 10 >= demand.least
    expected = (20_000 - 30 * in_flight - 10 * demand.least) / (30 * tail), (20_000 - 30 * in_flight) / (10 * 100 + 30 * tail)
    assert windows == in_flight + int(tail * min(expected))
    assert pool_blocks([Room(fixed(), (0, 30))], demand, memory) == (
        demand.least * 8,
        in_flight + int(tail * (1_000_000 - 30 * in_flight) / (30 * tail)),
    )
    with pytest.raises(MemoryPlanError, match="does not fit"):
        pool_blocks([room], demand, room.fixed.total + 10 * demand.least + 30 * demand.floors[0] - 1)


def test_the_tier_on_the_host_has_the_same_shares() -> None:
    rooms = [Room(fixed(), (10, 30))]
    assert host_blocks(20_000, rooms, (100, 20), shares_prefixes=True) == (1250, 250)
    assert host_blocks(0, rooms, (100, 20), shares_prefixes=False) == (0, 0)
    with pytest.raises(UsageError, match="not one KV block"):
        host_blocks(50, rooms, (100, 20), shares_prefixes=True)
