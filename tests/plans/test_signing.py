"""Signatures: by a trusted key, over these bytes, or refused."""

from __future__ import annotations

import base64
from pathlib import Path

import msgspec
import pytest
from tokenspeed.plans.errors import PlanError, UsageError
from tokenspeed.plans.reader import Plan
from tokenspeed.plans.signing import (
    Signature,
    TrustStore,
    generate_key,
    load_private_key,
    sign,
    signature_path,
    write_signature,
)
from tokenspeed.tests.plans.sample_plan import write_sample_plan


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    write_sample_plan(tmp_path / "plan.bin")
    return tmp_path / "plan.bin"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    generate_key(tmp_path / "signer")
    return tmp_path / "signer"


def signed(plan: Path, key: Path) -> Signature:
    with Plan.open(plan) as opened:
        signature = sign(opened.manifest_bytes, load_private_key(key))
    write_signature(plan, signature)
    return signature


def trust(key: Path) -> TrustStore:
    return TrustStore.open(key.with_name(key.name + ".pub"))


def test_a_signed_plan_opens_and_its_bytes_do_not_change(plan: Path, key: Path, tmp_path: Path) -> None:
    before = plan.read_bytes()
    signed(plan, key)
    assert plan.read_bytes() == before
    Plan.open(plan, trust=trust(key), require_signature=True).close()
    Plan.open(plan, trust=TrustStore.open(tmp_path)).close()


def test_keys_are_private_and_never_overwritten(key: Path) -> None:
    assert key.stat().st_mode & 0o777 == 0o600
    before = key.read_bytes()
    with pytest.raises(UsageError, match="never overwritten"):
        generate_key(key)
    key.with_name("other.pub").write_bytes(b"")
    with pytest.raises(UsageError, match="never overwritten"):
        generate_key(key.with_name("other"))
    assert key.read_bytes() == before and not key.with_name("other").exists()


def test_an_unsigned_plan_is_refused_under_a_trust_store(plan: Path, key: Path) -> None:
    with pytest.raises(PlanError, match="The plan is not signed"):
        Plan.open(plan, trust=trust(key))


def test_a_signature_cannot_be_required_without_keys(plan: Path) -> None:
    with pytest.raises(PlanError, match="--trust-store"):
        Plan.open(plan, require_signature=True)


def test_a_strangers_signature_is_refused(plan: Path, key: Path, tmp_path: Path) -> None:
    generate_key(tmp_path / "stranger")
    signed(plan, tmp_path / "stranger")
    with pytest.raises(PlanError, match="a key that is not trusted"):
        Plan.open(plan, trust=trust(key))


def test_a_signature_of_another_plan_is_refused(plan: Path, key: Path) -> None:
    signed(plan, key)
    write_sample_plan(plan, minimum_runtime="0.0.1")
    with pytest.raises(PlanError, match="signature is wrong"):
        Plan.open(plan, trust=trust(key))


def test_a_trusted_key_named_over_a_strangers_signature_is_refused(plan: Path, key: Path, tmp_path: Path) -> None:
    generate_key(tmp_path / "stranger")
    theirs, ours = signed(plan, tmp_path / "stranger"), signed(plan, key)
    write_signature(plan, msgspec.structs.replace(theirs, public_key=ours.public_key))
    with pytest.raises(PlanError, match="signature is wrong"):
        Plan.open(plan, trust=trust(key))


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 40, b'{"algorithm": 1}', b" " * 100_000, b"[" * 9000])
def test_signature_files_that_are_none(plan: Path, key: Path, content: bytes) -> None:
    signature_path(plan).write_bytes(content)
    with pytest.raises(PlanError, match="signature file cannot be read"):
        Plan.open(plan, trust=trust(key))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("algorithm", "none", "unknown kind"),
        ("public_key", "***", "cannot be read"),
        ("public_key", "", "not trusted"),
        ("signature", "é", "cannot be read"),
        ("signature", base64.b64encode(bytes(64)).decode(), "signature is wrong"),
        ("signature", "", "signature is wrong"),
    ],
)
def test_signature_fields_that_are_wrong(plan: Path, key: Path, field: str, value: str, message: str) -> None:
    write_signature(plan, msgspec.structs.replace(signed(plan, key), **{field: value}))
    with pytest.raises(PlanError, match=message):
        Plan.open(plan, trust=trust(key))


def test_keys_that_cannot_be_used(plan: Path, key: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="keygen"):
        load_private_key(tmp_path / "absent")
    with pytest.raises(UsageError, match="keygen"):
        load_private_key(key.with_name("signer.pub"))
    with pytest.raises(UsageError, match="trusted key"):
        TrustStore.open(key)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no keys"):
        TrustStore.open(tmp_path / "empty")
