"""Mutations of the KV manager's code that change nothing that a caller, or a person, could see; by name, with the reason."""

from __future__ import annotations

EQUIVALENT: dict[str, str] = {}
