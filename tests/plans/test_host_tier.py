"""What a plan says of its tier of KV blocks in host memory."""

from __future__ import annotations

import msgspec
import pytest
from tokenspeed.plans.errors import MemoryPlanError, PlanError
from tokenspeed.plans.host_tier import HOST_LINK, host_tier, host_tier_bytes
from tokenspeed.plans.integrity import check_manifest
from tokenspeed.plans.schema import Manifest, MeshAxis, Rate, StateGroup
from tokenspeed.runtime.host import check_host
from tokenspeed.tests.plans.sample_plan import sample_manifest
from tokenspeed.tests.plans.test_integrity import sound_manifest


def with_tier(manifest: Manifest, blocks: int = 10) -> Manifest:
    link = Rate(value=1e9, unit="B/s", source="test", basis="nominal")
    performance = msgspec.structs.replace(manifest.performance, rates={**manifest.performance.rates, HOST_LINK: link})
    kv = msgspec.structs.replace(manifest.kv, host_blocks=blocks)
    return msgspec.structs.replace(manifest, kv=kv, performance=performance)


def test_a_plan_without_the_field_has_none() -> None:
    assert host_tier(sample_manifest()) is None and host_tier_bytes(sample_manifest()) == 0


def test_what_it_takes_and_what_it_buys() -> None:
    manifest = with_tier(sample_manifest())
    check_manifest(with_tier(sound_manifest()))
    tier, kv = host_tier(manifest), manifest.kv
    assert tier is not None and not tier.page_locked
    assert tier.bytes == host_tier_bytes(manifest) == 10 * kv.bytes_per_block and tier.tokens == 10 * kv.block_tokens
    assert tier.example_tokens == manifest.model.max_context  # no session is longer
    assert tier.reload_seconds == pytest.approx(tier.example_tokens / kv.block_tokens * kv.bytes_per_block / 1e9)
    assert tier.recompute_seconds > 0
    assert tier.data()["blocks"] == 10 and "10 blocks" in tier.text and "1.0 GB/s (nominal)" in tier.text


def test_recurrent_states_leave_nothing_to_keep() -> None:
    manifest = with_tier(sound_manifest())
    state = StateGroup(name="state", layers=(0,), slots=manifest.schedule.max_sequences, shapes=((4,),), dtypes=("f32",))
    kv = msgspec.structs.replace(manifest.kv, states=(state,))
    with pytest.raises(PlanError) as caught:
        check_manifest(msgspec.structs.replace(manifest, kv=kv))
    assert caught.value.where == "kv.host_blocks"


def test_the_hosts_memory_is_asked_before_anything_is_loaded() -> None:
    manifest = with_tier(sample_manifest(mesh=(MeshAxis(name="tp", size=2),)))
    every = 2 * (manifest.memory.total + host_tier_bytes(manifest))
    features = frozenset(manifest.target.features)
    check_host(manifest, features=features, memory_bytes=every)
    with pytest.raises(MemoryPlanError, match=r"needs 1\.00 KiB more") as caught:
        check_host(manifest, features=features, memory_bytes=every - 1024)
    assert "--host-kv" in str(caught.value)
