"""The one place where MLIR's Python bindings are imported (wheel `torch-mlir`, which does not import torch)."""

import sys
from types import ModuleType

from torch_mlir import ir, passmanager
from torch_mlir.dialects import ext, func

# MLIR looks for a module named as an operation's dialect whenever it hands the operation to Python, in vain and so again each
# time: most of the time of every pass. Ours has none, for its classes register themselves (ir/dialect.py).
sys.modules.setdefault("torch_mlir.dialects.ts", ModuleType("torch_mlir.dialects.ts"))

__all__ = ["DYNAMIC", "ext", "func", "ir", "passmanager"]

DYNAMIC: int = ir.ShapedType.get_dynamic_size()
