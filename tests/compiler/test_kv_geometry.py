"""KV groups from a module's attention, and the digest that says whose KV is interchangeable."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
import torch
from tokenspeed.compiler.kv_geometry import compatibility, kv_groups, ordered
from tokenspeed.ir import module
from tokenspeed.plans.errors import UsageError
from tokenspeed.plans.kv_caches import block_bytes, cache_names
from tokenspeed.plans.program import Call, Program, Repeat
from tokenspeed.plans.schema import KvGroup, SourceTensor

from ..ir.modules import HEAD_DIM, KV_HEADS, decoder
from ..ir.samples import SOUND
from ..passes.test_fusions import fused


@pytest.fixture(autouse=True)
def in_context() -> Iterator[None]:
    with module.context():
        yield


@pytest.mark.parametrize("rope", [True, False])
@pytest.mark.parametrize("pattern", [1, 2])
def test_all_layers_of_one_geometry_are_one_group(rope: bool, pattern: int) -> None:
    parsed = fused(decoder(layers=4, pattern=pattern, rope=rope, dtype="bf16"))
    assert kv_groups(parsed) == (
        KvGroup(name="full", kind="paged", layers=(0, 1, 2, 3), heads=KV_HEADS, head_dim=HEAD_DIM, dtype="bf16", window=None),
    )


def test_windows_make_groups_in_the_order_of_their_first_layers() -> None:
    text = decoder(layers=6, pattern=2, window=5)
    at = text.index("window = 5", text.index("window = 5") + 1)
    parsed = fused(text[:at] + "window = 0" + text[at + len("window = 5") :])
    groups = kv_groups(parsed)
    assert [(group.name, group.layers, group.window) for group in groups] == [
        ("window5", (0, 2, 4), 5),
        ("full", (1, 3, 5), None),
    ]


def test_latents_are_a_group_of_one_cache() -> None:
    sample = next(item for item in SOUND if item.name == "ts.latent_attention")
    (group,) = kv_groups(module.parse(sample.module()))
    assert group == KvGroup(name="latent", kind="latent", layers=(0,), heads=1, head_dim=5 + 2, dtype="f32", window=None)
    assert [*cache_names(group)] == ["kv.latent.0"] and block_bytes(group, 16) == 16 * 7 * 4


def test_keys_and_values_as_8_bit_floats() -> None:
    (group,) = kv_groups(fused(decoder(layers=2, dtype="bf16")), "f8e4m3")
    assert group.dtype == "f8e4m3" and block_bytes(group, 16) == 2 * 2 * 16 * KV_HEADS * HEAD_DIM
    sample = next(item for item in SOUND if item.name == "ts.latent_attention")
    with pytest.raises(UsageError, match="--kv-dtype"):
        kv_groups(module.parse(sample.module()), "f8e4m3")


GROUP = KvGroup(name="full", kind="paged", layers=(0,), heads=2, head_dim=8, dtype="f32", window=None)
SOURCE = SourceTensor(name="a", encoding="F32", shape=(2, 3), bytes=24)
FREQUENCIES = {"inv_freq": torch.tensor([1.0, 0.5])}


def test_compatibility_changes_with_what_keys_and_values_depend_on_and_with_nothing_else() -> None:
    base = compatibility([GROUP], [SOURCE], FREQUENCIES, "LlamaForCausalLM")
    assert base == compatibility([GROUP], [SOURCE], {"inv_freq": torch.tensor([1.0, 0.5])}, "LlamaForCausalLM")
    other = [
        compatibility([msgspec.structs.replace(GROUP, dtype="bf16")], [SOURCE], FREQUENCIES, "LlamaForCausalLM"),
        compatibility([msgspec.structs.replace(GROUP, dtype="f8e4m3")], [SOURCE], FREQUENCIES, "LlamaForCausalLM"),
        compatibility([msgspec.structs.replace(GROUP, block_order="head_major")], [SOURCE], FREQUENCIES, "LlamaForCausalLM"),
        compatibility([msgspec.structs.replace(GROUP, window=4)], [SOURCE], FREQUENCIES, "LlamaForCausalLM"),
        compatibility([GROUP], [msgspec.structs.replace(SOURCE, shape=(3, 2))], FREQUENCIES, "LlamaForCausalLM"),
        compatibility([GROUP], [msgspec.structs.replace(SOURCE, digest="0" * 64)], FREQUENCIES, "LlamaForCausalLM"),
        compatibility([GROUP], [msgspec.structs.replace(SOURCE, digest="1" * 64)], FREQUENCIES, "LlamaForCausalLM"),
        compatibility([GROUP], [SOURCE], {"inv_freq": torch.tensor([1.0, 0.25])}, "LlamaForCausalLM"),
        compatibility([GROUP], [SOURCE], FREQUENCIES, "MistralForCausalLM"),
    ]
    assert len({base, *other}) == len(other) + 1
    two = [msgspec.structs.replace(SOURCE, name=name) for name in "ba"]
    assert compatibility([GROUP], two, {}, "x") == compatibility([GROUP], two[::-1], {}, "x"), "order does not matter"


def program(*body: Call | Repeat) -> Program:
    return Program(name="step", rank=0, buffers=(), views=(), body=body, buckets=())


def writes(function: str, *caches: str) -> Call:
    return Call(function, ("k", "v", "slot_mapping"), caches)


def test_heads_come_first_where_the_plan_s_own_kernels_alone_touch_the_caches() -> None:
    groups = (
        msgspec.structs.replace(GROUP, name="even", layers=(0, 2)),
        msgspec.structs.replace(GROUP, name="odd", layers=(1, 3)),
        KvGroup(name="latent", kind="latent", layers=(4,), heads=1, head_dim=8, dtype="f32"),
    )
    native = Repeat(0, 4, 1, (writes("native.kv_write", "kv.k.{i}", "kv.v.{i}"),))
    latent = writes("native.latent_kv_write", "kv.latent.4")

    def orders(*body: Call | Repeat) -> list[str]:
        return [group.block_order for group in ordered(groups, (program(*body), program()))]

    assert orders(native, latent) == ["head_major", "head_major", "token_major"]
    assert orders(native, writes("attention", "kv.v.3")) == ["head_major", "token_major", "token_major"]
    assert orders(native, Repeat(0, 1, 1, (writes("copy", "kv.k.{i+1}"),))) == ["head_major", "token_major", "token_major"]
    assert orders(Repeat(0, 2, 2, (writes("attention", "kv.k.{i}"),)), native) == ["token_major", "head_major", "token_major"]
