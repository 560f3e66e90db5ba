"""NVIDIA's accelerators by name, one file per generation: rates, sizes, what kernels may count on.

Registered in `targets/registry.py`. Tensor core rates are dense ones: data sheets also give twice that, for sparse matrices.
"""

from .ampere import AMPERE
from .blackwell import BLACKWELL
from .hopper import HOPPER

NVIDIA = (*AMPERE, *HOPPER, *BLACKWELL)
