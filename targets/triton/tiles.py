"""Sizes that templates share."""

from __future__ import annotations

from ..accelerator import Accelerator


def power_of_two_above(count: int) -> int:
    """The smallest power of two that is not below `count`."""
    return 1 << max(count - 1, 0).bit_length()


def waits_for_inputs(accelerator: Accelerator) -> bool:
    """Whether kernels may begin before the one ahead has ended."""
    return "programmatic-launch" in accelerator.instructions


def paired_codes(accelerator: Accelerator, dtype: str) -> bool:
    """Whether codes of weights become values of `dtype` two at a time, by NVIDIA's instructions."""
    return accelerator.kind == "cuda" and dtype == "bf16"


def float8_means(accelerator: Accelerator, dtype: str) -> str:
    """How 8-bit floats become numbers for attention of `dtype` (sources/float8.py)."""
    if accelerator.kind != "cuda" or dtype == "f32":
        return "bits"
    return "instruction" if "fp8-e4m3" in accelerator.instructions else "paired bits"
