"""What the device of this machine does at best, and how far numbers are from what they should be."""

from __future__ import annotations

import torch
from torch import Tensor

from .on_device import library_seconds

PASS_BYTES = 1 << 30
PRODUCT = 8192


def bandwidth() -> float:
    """Bytes read and written in a second by a pass over memory."""
    source = torch.zeros(PASS_BYTES // 4, device="cuda")
    target = torch.empty_like(source)
    return 2 * PASS_BYTES / library_seconds([lambda: torch.mul(source, 2, out=target)] * 4)


def rate() -> float:
    """Operations in a second of a large product."""
    factor = torch.randn(PRODUCT, PRODUCT, device="cuda").bfloat16()
    return 2 * PRODUCT**3 / library_seconds([lambda: factor @ factor] * 2)


def largest_error(got: Tensor, wanted: Tensor) -> float:
    """The largest difference as a share of the largest value; NaN in `wanted` stands for what is not known."""
    known = ~wanted.isnan()
    difference = (got.double() - wanted)[known].abs().max()
    return float(difference / wanted[known].abs().max())
