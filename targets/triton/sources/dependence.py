"""Waiting for the kernel ahead, and letting the next one begin (programmatic dependent launch)."""

import triton
import triton.language as tl
from triton.language.extra import cuda


@triton.jit
def wait_for_inputs(DEPENDENT: tl.constexpr):
    """Everything that kernels ahead wrote is visible afterwards."""
    if DEPENDENT:
        cuda.gdc_wait()


@triton.jit
def let_next_begin(DEPENDENT: tl.constexpr):
    """The next kernel may be started; it waits for this one's end by itself."""
    if DEPENDENT:
        cuda.gdc_launch_dependents()
