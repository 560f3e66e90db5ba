"""Axes of a plan's mesh that a runtime has to know by name."""

from __future__ import annotations

from collections.abc import Sequence

from .schema import MeshAxis

GROUPS = "dp"
"""The axis along which ranks have sequences of their own, and KV blocks: ranks of one place on it are a group."""

STAGES = "pp"
"""The axis along which ranks have layers of their own; those of the last place have the logits."""


def stages_of(mesh: Sequence[MeshAxis]) -> int:
    """How many stages there are."""
    return next((axis.size for axis in mesh if axis.name == STAGES), 1)


def groups_of(mesh: Sequence[MeshAxis]) -> int:
    """How many groups there are. Limits of a schedule and blocks of a KV pool are those of one."""
    return next((axis.size for axis in mesh if axis.name == GROUPS), 1)
