"""The memory plan adds up, fills what it is given, and refuses by exactly what is missing."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenspeed.compiler.memory import (
    ATTENTION_SCRATCH,
    BLOCK_TOKENS,
    LIBRARY_SCRATCH,
    bytes_per_block,
    fixed_memory,
    kv_blocks,
    with_kv,
)
from tokenspeed.passes.schedule import TrafficProfile, schedule
from tokenspeed.plans.errors import MemoryPlanError
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
    blocks = kv_blocks(plan, block_bytes, memory, LIMITS, max_context)
    total = with_kv(plan, block_bytes, blocks).total
    assert blocks >= least and total <= memory < total + block_bytes


@given(st.integers(1, 1 << 20), st.integers(1, 1 << 20))
def test_what_is_missing_is_said(block_bytes: int, missing: int) -> None:
    plan = fixed()
    memory = plan.total + 16 * block_bytes - missing
    with pytest.raises(MemoryPlanError, match="does not fit") as refused:
        kv_blocks(plan, block_bytes, memory, LIMITS, 1000)
    error = refused.value
    assert re.search(r"\d.* too much", error.what) and "KV of one full context" in error.expected and "--memory" in error.fix


def test_without_a_limit_the_pool_is_twice_the_live_tokens_of_the_traffic() -> None:
    limits = schedule(TrafficProfile(prompt_tokens=640, output_tokens=64, concurrency=3), 1000, 4, 64)
    plan = fixed()
    assert kv_blocks(plan, 1, None, limits, 1000) == 2 * 3 * 11
    assert kv_blocks(plan, 1, None, limits, 100, groups=3) == 2 * 11, "a group's share"
    assert kv_blocks(plan, 1, None, limits, 100_000) == 1563, "one full context at least"
