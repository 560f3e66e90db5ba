"""Who compiled: the package's version, a digest of the compiler's own sources, and the libraries that shape a plan."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOMS = ("plans", "ir", "targets", "passes", "compiler", "runtime/functions")
LIBRARIES = ("torch", "transformers", "torch-mlir", "tokenizers", "gguf", "numpy")
KERNEL_LIBRARIES = ("triton",)
"""What makes the kernels of accelerators, and has no part in plans for CPUs."""


def compiler_digest() -> str:
    """SHA-256 over the names and contents of all sources that decide what a plan is."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for room in ROOMS:
        for path in sorted(path for kind in ("*.py", "*.cpp", "*.h", "*.json") for path in (root / room).rglob(kind)):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()


def library_versions(kernels: bool = False) -> dict[str, str]:
    """Public versions (a local build tag such as +cpu does not change what is compiled); `kernels`: of what makes those of
    accelerators too."""
    found = {}
    for name in (*LIBRARIES, *(KERNEL_LIBRARIES if kernels else ())):
        try:
            found[name] = version(name).split("+")[0]
        except PackageNotFoundError:
            continue
    return found
