"""API keys of named tenants, from a file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...plans.errors import UsageError

_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LINE = "TENANT KEY [WEIGHT], where TENANT is up to 64 of A-Z a-z 0-9 . _ - and WEIGHT is from 0.001 to 1000"


@dataclass(frozen=True)
class TenantKey:
    """A key of a tenant; `weight`, where the line gives one, is the tenant's share of the machine beside others' where they
    compete for it."""

    tenant: str
    key: str = field(repr=False)
    weight: float | None = None


def read_keys_file(path: Path) -> tuple[TenantKey, ...]:
    """A line for each key: TENANT KEY [WEIGHT]; empty lines and those that begin with # are none.

    A tenant may have several keys, but one weight: the last one given. Raises UsageError; no key is in its text.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("the file of keys cannot be read", where=str(path), got=str(error), fix="correct --keys-file") from None
    found = [
        _key(f"{path}:{number}", line) for number, line in enumerate(lines, start=1) if line.strip() and line.lstrip()[0] != "#"
    ]
    keys = [key.key for key in found]
    if len(set(keys)) < len(keys):
        raise UsageError("the file of keys has a key twice", where=str(path), fix="give each tenant keys of its own")
    if not found:
        raise UsageError("the file of keys has no key", where=str(path), expected=_LINE, fix="add one, or leave out --keys-file")
    return tuple(found)


def tenant_weights(keys: Sequence[TenantKey]) -> dict[str, float]:
    """The weights that are given, by tenant."""
    return {key.tenant: key.weight for key in keys if key.weight is not None}


def _key(where: str, line: str) -> TenantKey:
    parts = line.split()
    wrong = UsageError("a line of the file of keys is not understood", where=where, expected=_LINE, fix="correct this line")
    if len(parts) not in (2, 3) or not _TENANT.fullmatch(parts[0]):
        raise wrong
    try:
        weight = float(parts[2]) if len(parts) == 3 else None
    except ValueError:
        raise wrong from None
    if weight is not None and not 0.001 <= weight <= 1000:
        raise wrong
    return TenantKey(parts[0], parts[1], weight)
