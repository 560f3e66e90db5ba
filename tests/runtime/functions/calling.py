"""Calls a function of the allow-list as the executor does."""

from __future__ import annotations

import torch
from tokenspeed.plans.program import Attribute
from tokenspeed.runtime.functions.base import Context, Launch, Operands
from tokenspeed.runtime.functions.registry import lookup

NAN = float("nan")


def bind(
    name: str,
    inputs: list[torch.Tensor],
    outputs: list[torch.Tensor],
    context: Context | None = None,
    **attributes: Attribute,
) -> Launch:
    return lookup(name)(Operands(name, inputs, outputs, attributes, context or Context()))


def call(name: str, inputs: list[torch.Tensor], outputs: list[torch.Tensor], **attributes: Attribute) -> None:
    """Bind and launch once, as a first step."""
    context = Context()
    context.step = 1
    bind(name, inputs, outputs, context, **attributes)()


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full(shape, NAN, dtype=dtype)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, NaN if any is NaN."""
    return float((found.double() - expected.double()).abs().max()) if found.numel() else 0.0
