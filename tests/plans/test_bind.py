"""Digests of tensors, and binding a plan to a checkpoint."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from tokenspeed.plans import digests
from tokenspeed.plans.bind import bind_plan
from tokenspeed.plans.digests import bound_compatibility, tensor_digest
from tokenspeed.plans.errors import WeightsError
from tokenspeed.plans.reader import Plan
from tokenspeed.plans.schema import SourceTensor
from tokenspeed.tests.plans.sample_plan import sample_manifest, write_sample_plan


@dataclass
class Checkpoint:
    """The sample's weights, made of one byte each."""

    tensors: dict[str, SourceTensor]
    fill: int = 1

    def read(self, name: str) -> memoryview:
        return memoryview(bytes([self.fill]) * self.tensors[name].bytes)


@pytest.fixture
def checkpoint() -> Checkpoint:
    return Checkpoint({source.name: source for source in sample_manifest().sources})


def test_digest_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "DIGEST_CHUNK_BYTES", 4)
    data = b"0123456789"
    parts = [hashlib.sha256(data[at : at + 4]).digest() for at in range(0, 10, 4)]
    expected = hashlib.sha256(b"".join(parts)).hexdigest()
    for cut in range(11):
        assert tensor_digest([data[:cut], memoryview(data)[cut:]]) == expected
    assert tensor_digest([data[:8]]) == hashlib.sha256(b"".join(parts[:2])).hexdigest()


def test_digest_of_a_small_and_of_an_empty_tensor() -> None:
    assert tensor_digest([b"abc"]) == hashlib.sha256(hashlib.sha256(b"abc").digest()).hexdigest()
    assert tensor_digest([]) == tensor_digest([b""]) == hashlib.sha256().hexdigest()


def test_binding_adds_digests_and_changes_nothing_else(tmp_path: Path, checkpoint: Checkpoint) -> None:
    write_sample_plan(tmp_path / "plan.bin")
    with Plan.open(tmp_path / "plan.bin") as plan:
        plan_id = bind_plan(plan, checkpoint, tmp_path / "bound.bin")
        with Plan.open(tmp_path / "bound.bin") as bound:
            bound.verify_all()
            assert bound.plan_id == plan_id != plan.plan_id
            assert bound.manifest.entries == plan.manifest.entries
            assert all(source.digest == tensor_digest([checkpoint.read(source.name)]) for source in bound.manifest.sources)
            expected = bound_compatibility(plan.manifest.kv.compatibility, bound.manifest.sources)
            kv = msgspec.structs.replace(plan.manifest.kv, compatibility=expected)
            same = msgspec.structs.replace(plan.manifest, kv=kv, sources=bound.manifest.sources)
            assert bound.manifest == same


def test_binding_again_needs_the_same_weights(tmp_path: Path, checkpoint: Checkpoint) -> None:
    write_sample_plan(tmp_path / "plan.bin")
    with Plan.open(tmp_path / "plan.bin") as plan:
        plan_id = bind_plan(plan, checkpoint, tmp_path / "bound.bin")
    with Plan.open(tmp_path / "bound.bin") as bound:
        assert bind_plan(bound, checkpoint, tmp_path / "again.bin") == plan_id
        with pytest.raises(WeightsError, match="already bound to other weights"):
            bind_plan(bound, Checkpoint(checkpoint.tensors, 2), tmp_path / "other.bin")
    assert not (tmp_path / "other.bin").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (32, 96)}, r"expected: F32\[96, 32\], 12288 bytes\n  got:      F32\[32, 96\]"),
        ({"encoding": "BF16", "bytes": 6144}, r"got:      BF16\[96, 32\], 6144 bytes"),
        (None, "lack a tensor"),
    ],
)
def test_weights_of_another_shape_are_refused(tmp_path: Path, checkpoint: Checkpoint, change: dict | None, message: str) -> None:
    write_sample_plan(tmp_path / "plan.bin")
    tensor = checkpoint.tensors.pop("embed.weight")
    if change is not None:
        checkpoint.tensors["embed.weight"] = msgspec.structs.replace(tensor, **change)
    with Plan.open(tmp_path / "plan.bin") as plan, pytest.raises(WeightsError, match=message) as caught:
        bind_plan(plan, checkpoint, tmp_path / "bound.bin")
    assert caught.value.where == "embed.weight"


def test_compatibility_depends_on_every_digest_and_not_on_order() -> None:
    one, other, *_ = (msgspec.structs.replace(source, digest="a" * 64) for source in sample_manifest().sources)
    value = bound_compatibility("base", [one, other])
    assert value == bound_compatibility("base", [other, one])
    assert value != bound_compatibility("other", [one, other])
    assert value != bound_compatibility("base", [one, msgspec.structs.replace(other, digest="b" * 64)])
