"""Digests of a model's inputs, for a plan's provenance."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def json_sha256(value: dict[str, Any]) -> str:
    """Of the value's canonical text: sorted keys, no spaces, so that equal values give equal digests."""
    return sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())
