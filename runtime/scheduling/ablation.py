"""Policies by name, and policies without some of their features: to see what each of them is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from ...plans.errors import UsageError
from .policy import AGENTIC, PLAIN, Policy

POLICIES: Mapping[str, Policy] = {"agentic": AGENTIC, "plain": PLAIN}
FEATURES = tuple(field.name for field in fields(Policy) if getattr(PLAIN, field.name) != getattr(AGENTIC, field.name))
"""Fields of `Policy` that a feature can be turned off by; the others are numbers of features."""


def without(policy: Policy, features: Sequence[str]) -> Policy:
    """`policy` with these features as in PLAIN. Raises UsageError for a name that is none."""
    for name in features:
        if name not in FEATURES:
            raise UsageError(
                "this is no feature of the scheduler's policy",
                where="--without",
                expected=f"one of {', '.join(FEATURES)}",
                got=name,
                fix="correct --without",
            )
    off: dict[str, Any] = {name: getattr(PLAIN, name) for name in features}
    return replace(policy, **off)
