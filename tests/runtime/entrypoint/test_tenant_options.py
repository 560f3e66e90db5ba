"""Keys of named tenants and service tiers as an operator writes them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenspeed.plans.errors import UsageError
from tokenspeed.runtime.entrypoint.keys_file import TenantKey, read_keys_file, tenant_weights
from tokenspeed.runtime.entrypoint.service_tiers import DEFAULT_TIERS, ServiceTier, read_tiers


def test_a_file_of_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nteam-a sk-1 2\n\n  team-a sk-2 3\nteam-a sk-4\nteam-b sk-3\n")
    keys = read_keys_file(file)
    assert keys[:2] == (TenantKey("team-a", "sk-1", 2), TenantKey("team-a", "sk-2", 3))
    assert keys[2:] == (TenantKey("team-a", "sk-4"), TenantKey("team-b", "sk-3"))
    assert tenant_weights(keys) == {"team-a": 3}
    assert "sk-1" not in repr(keys)


@pytest.mark.parametrize(
    ("text", "line"),
    [("a/b sk-secret", ":1"), ("team", ":1"), ("a k\nteam sk-secret heavy", ":2"), ("t sk-secret 0", ":1"),
     ("t sk-secret 1 1", ":1"), ("t sk-secret nan", ":1"), ("a sk-secret\nb sk-secret", ""), ("# none", "")],
)  # fmt: skip
def test_a_wrong_file_of_keys_is_refused_without_telling_keys(tmp_path: Path, text: str, line: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_keys_file(file)
    assert f"{file}{line}" in str(caught.value) and "sk-secret" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        read_keys_file(tmp_path / "nothing")


def test_tiers() -> None:
    tiers = read_tiers(["priority=-5,250", "bulk=100", "live=-20,,12.5"])
    assert tiers["priority"] == ServiceTier(-5, 250.0, None)
    assert (tiers["bulk"], tiers["live"]) == (ServiceTier(100), ServiceTier(-20, None, 12.5))
    assert tiers["flex"] == DEFAULT_TIERS["flex"]


@pytest.mark.parametrize("text", ["priority", "=5", "a=soon", "a=1,0", "a=1,2,3,4", "a=1,-2", "a=1e3"])
def test_what_is_no_tier(text: str) -> None:
    with pytest.raises(UsageError):
        read_tiers([text])
