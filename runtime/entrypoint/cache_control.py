"""Anthropic's `cache_control` marks, which clients leave on messages, content parts and tools: taken out, so that no template
sees them, and read as a hint for how long a prompt will be wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .api_error import invalid

_SECONDS = {"5m": 300.0, "1h": 3600.0}
_MARK = "cache_control"
_PARTS = ("content", "tool_calls", "function")
"""Fields whose value may be marked as well. Others (a tool's parameters, a call's arguments) are the client's own data."""

_DEEPEST = 16


def take_marks(value: Any, where: str, depth: int = 0) -> tuple[Any, float | None]:
    """`value` (messages or tools) without marks, and the longest time that one asks for (seconds; None: there is none).

    `where` is the field's name. What has no mark is the same object as before. Raises ApiError (400) for a mark that is none.
    """
    if depth > _DEEPEST:
        return value, None
    if isinstance(value, list):
        return _without_in_list(value, where, depth)
    if isinstance(value, dict):
        return _without_in_object(value, where, depth)
    return value, None


def mark_seconds(mark: Any, where: str) -> float | None:
    """What one mark asks for. Raises ApiError (400)."""
    if mark is None:
        return None
    if not isinstance(mark, dict) or mark.get("type") != "ephemeral":
        raise invalid(where, f'`{where}` must be {{"type": "ephemeral"}}, with or without a `ttl`')
    ttl = mark.get("ttl")
    seconds = _SECONDS.get("5m" if ttl is None else ttl) if ttl is None or isinstance(ttl, str) else None
    if seconds is None:
        raise invalid(f"{where}.ttl", f'`{where}.ttl` must be "5m" or "1h"')
    return seconds


def longest(*seconds: float | None) -> float | None:
    return max((value for value in seconds if value is not None), default=None)


def _without_in_list(values: Sequence[Any], where: str, depth: int) -> tuple[Any, float | None]:
    found = [take_marks(value, f"{where}[{index}]", depth + 1) for index, value in enumerate(values)]
    changed = any(new is not old for (new, _), old in zip(found, values, strict=True))
    return [new for new, _ in found] if changed else values, longest(*(seconds for _, seconds in found))


def _without_in_object(value: Mapping[str, Any], where: str, depth: int) -> tuple[Any, float | None]:
    seconds = mark_seconds(value[_MARK], f"{where}.{_MARK}") if _MARK in value else None
    changes: dict[str, Any] = {}
    for name in _PARTS:
        if isinstance(value.get(name), list | dict):
            new, inner = take_marks(value[name], f"{where}.{name}", depth + 1)
            seconds = longest(seconds, inner)
            if new is not value[name]:
                changes[name] = new
    if _MARK not in value and not changes:
        return value, seconds
    return {name: item for name, item in value.items() if name != _MARK} | changes, seconds
