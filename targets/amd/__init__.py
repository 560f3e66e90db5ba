"""AMD's accelerators by name, one file per generation: rates, sizes, what kernels may count on.

Registered in `targets/registry.py`. Matrix rates are dense ones. None of these has run anything of this project.
"""

from .cdna3 import CDNA3
from .cdna4 import CDNA4

AMD = (*CDNA3, *CDNA4)
