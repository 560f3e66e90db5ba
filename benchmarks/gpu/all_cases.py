"""Every case of the kernels' benchmark."""

from __future__ import annotations

from collections.abc import Iterator

from .block_cases import block_cases
from .cases import Case, cases
from .float8_cases import float8_cases
from .mixed_steps import mixed_steps


def all_cases() -> Iterator[Case]:
    """A step of Llama 3.1 8B, layers of weights in blocks, attention over 8-bit floats and of steps that have everything."""
    yield from cases()
    yield from block_cases()
    yield from float8_cases()
    yield from mixed_steps()
