"""Names with a layer index in them: `model.layers.{i}.mlp.up_proj.weight`, `{i+1}` in bodies of several layers."""

from __future__ import annotations

import re

_INDEX = re.compile(r"\{i(?:\+(\d+))?\}")


def instantiate(template: str, index: int) -> str:
    """The name for layer `index`; a name without `{i}` comes back unchanged."""
    return _INDEX.sub(lambda match: str(index + int(match[1] or 0)), template)


def is_templated(name: str) -> bool:
    return _INDEX.search(name) is not None


def shift(template: str, by: int) -> str:
    """The same template seen from `by` layers earlier: `{i}` becomes `{i+by}`."""

    def moved(match: re.Match[str]) -> str:
        offset = int(match[1] or 0) + by
        return f"{{i+{offset}}}" if offset else "{i}"

    return _INDEX.sub(moved, template)
