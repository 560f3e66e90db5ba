"""The one place where MLIR's Python bindings are imported (wheel `torch-mlir`, which does not import torch)."""

from torch_mlir import ir, passmanager
from torch_mlir.dialects import ext, func

__all__ = ["DYNAMIC", "ext", "func", "ir", "passmanager"]

DYNAMIC: int = ir.ShapedType.get_dynamic_size()
