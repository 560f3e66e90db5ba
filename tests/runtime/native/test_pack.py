"""Packing weights into panels, byte for byte."""

from __future__ import annotations

import gguf.quants
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenspeed.plans.errors import PlanError
from tokenspeed.plans.weight_layout import row_bytes, stored_bytes
from tokenspeed.runtime.native.records import NativeArray, PackedWeight, describe

from ..functions.calling import random
from .calling import MACHINES, call, empty_packed, on_every_machine
from .panels import GGML, block_panels, float_panels, packed, quantised

FLOATS = {"f32": torch.float32, "bf16": torch.bfloat16}


def blocks_of(blocks: np.ndarray, shape: tuple[int, ...], dtype: str) -> NativeArray:
    return NativeArray(blocks.ctypes.data, shape, (0,) * len(shape), dtype, False, blocks)


def same(weight: PackedWeight, expected: np.ndarray) -> bool:
    return bool(np.array_equal(weight.data.numpy(), expected))


@settings(max_examples=40, deadline=None)
@given(
    machine=st.sampled_from([*MACHINES]),
    source=st.sampled_from([*FLOATS]),
    dtype=st.sampled_from([*FLOATS]),
    rows=st.integers(1, 70),
    features=st.integers(1, 150),
    gap=st.integers(0, 9),
)
def test_floats(machine: str, source: str, dtype: str, rows: int, features: int, gap: int) -> None:
    weight = random(rows, features + gap, seed=rows, dtype=FLOATS[source])[:, gap:]
    assert same(packed(machine, weight, dtype), float_panels(weight.to(FLOATS[dtype])))


@settings(max_examples=40, deadline=None)
@given(
    machine=st.sampled_from([*MACHINES]),
    source=st.sampled_from([*FLOATS]),
    dtype=st.sampled_from([*GGML]),
    rows=st.integers(1, 70),
    groups=st.integers(1, 5),
    coarse=st.booleans(),
)
def test_quantising_rounds_as_ggml(machine: str, source: str, dtype: str, rows: int, groups: int, coarse: bool) -> None:
    weight = random(rows, groups * 32, seed=rows + groups)
    if coarse:  # many ties, blocks of zeros
        weight = (weight * 2).round() / 4 * (torch.arange(rows) % 3 > 0)[:, None] + 0.0
    weight = weight.to(FLOATS[source])
    blocks, _ = quantised(weight, dtype)
    assert same(packed(machine, weight, dtype), block_panels(blocks, dtype))


@on_every_machine
@pytest.mark.parametrize("dtype", GGML)
def test_blocks_are_moved_as_they_are(machine: str, dtype: str) -> None:
    blocks, _ = quantised(random(45, 96), dtype)
    weight = empty_packed((45, 96), dtype, stored_bytes((45, 96), dtype, "panel"))
    call(machine, "pack_panel", [blocks_of(blocks, (45, 96), dtype)], [weight])
    assert same(weight, block_panels(blocks, dtype))


@on_every_machine
def test_super_blocks_become_blocks(machine: str) -> None:
    rows, features = 37, 512
    generator = np.random.default_rng(0)
    blocks = generator.integers(0, 256, (rows, features // 256, 144), np.uint8)
    blocks[..., :4] = generator.uniform(0.001, 0.1, (rows, features // 256, 2)).astype(np.float16).view(np.uint8)
    blocks = blocks.reshape(rows, -1)
    weight = empty_packed((rows, features), "q4_1", stored_bytes((rows, features), "q4_1", "panel"))
    call(machine, "pack_panel", [blocks_of(blocks, (rows, features), "q4_k")], [weight])
    assert same(weight, block_panels(_split(blocks), "q4_1"))


def _split(blocks: np.ndarray) -> np.ndarray:
    """Q4_K blocks as Q4_1 blocks: scales and minimums rounded to half precision."""
    flat = blocks.reshape(-1, 144)
    halves = flat[:, :4].copy().view(np.float16).astype(np.float32)
    scales, minimums = gguf.quants.Q4_K.get_scale_min(flat[:, 4:16].copy())
    heads = np.stack([halves[:, :1] * scales, -(halves[:, 1:] * minimums)], axis=-1).astype(np.float16).view(np.uint8)
    nibbles = flat[:, 16:].reshape(-1, 4, 1, 32) >> np.array([0, 4], np.uint8)[:, None] & 15
    nibbles = nibbles.reshape(-1, 8, 32)
    quants = nibbles[..., :16] | nibbles[..., 16:] << 4
    return np.concatenate([heads, quants], axis=-1).reshape(len(blocks), -1)


def test_the_split_stands_for_the_same_values() -> None:
    generator = np.random.default_rng(1)
    blocks = generator.integers(0, 256, (9, 144), np.uint8)
    blocks[:, :4] = generator.uniform(0.01, 0.1, (9, 2)).astype(np.float16).view(np.uint8)
    exact = gguf.quants.dequantize(blocks, GGMLQuantizationType.Q4_K)
    found = gguf.quants.dequantize(_split(blocks), GGMLQuantizationType.Q4_1)
    assert np.abs(found - exact).max() <= 2e-3 * np.abs(exact).max()


@on_every_machine
@pytest.mark.parametrize("dtype", [*FLOATS, *GGML])
def test_experts_follow_each_other(machine: str, dtype: str) -> None:
    experts = random(3, 40, 64, dtype=torch.bfloat16)
    whole = packed(machine, experts, dtype)
    assert same(whole, np.concatenate([packed(machine, expert, dtype).data.numpy() for expert in experts]))


@on_every_machine
@pytest.mark.parametrize("dtype", [*FLOATS, *GGML])
def test_any_number_of_threads(machine: str, dtype: str) -> None:
    source = random(130, 96)
    first = packed(machine, source, dtype, threads=1)
    for threads in (2, 3):
        assert same(packed(machine, source, dtype, threads), first.data.numpy())


def test_nothing_outside_is_written() -> None:
    shape = (33, 32)
    count = stored_bytes(shape, "q8_0", "panel")
    room = empty_packed(shape, "q8_0", count + 128)
    call(next(iter(MACHINES)), "pack_panel", [random(*shape)], [PackedWeight(room.data[:count], shape, "q8_0")])
    assert (room.data[count:] == 0x7F).all()


def test_refuses_what_it_cannot_pack() -> None:
    machine = next(iter(MACHINES))
    target = empty_packed((32, 48), "q8_0", 64 * 34)
    with pytest.raises(PlanError, match="whole blocks"):
        call(machine, "pack_panel", [random(32, 48)], [target])
    with pytest.raises(PlanError, match="one shape"):
        call(machine, "pack_panel", [random(32, 64)], [target])
    with pytest.raises(PlanError, match="row-major source"):
        call(machine, "pack_panel", [target], [target])
    with pytest.raises(PlanError, match="weight in the panel layout"):
        call(machine, "pack_panel", [random(32, 48)], [random(32, 48)])
    with pytest.raises(PlanError, match="side by side"):
        call(machine, "pack_panel", [random(32, 32).T], [empty_packed((32, 32), "f32", 4096)])
    blocks = np.zeros((32, row_bytes(32, "q4_0")), np.uint8)
    with pytest.raises(PlanError, match="weight's own type"):
        call(machine, "pack_panel", [blocks_of(blocks, (32, 32), "q4_0")], [empty_packed((32, 32), "q8_0", 32 * 34)])
    with pytest.raises(PlanError, match="source"):
        call(machine, "pack_panel", [describe(random(32, 32).to(torch.int8), "i8")], [empty_packed((32, 32), "f32", 4096)])
