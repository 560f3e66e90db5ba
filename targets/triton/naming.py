"""Names of device functions: what they do, and a digest of what their code depends on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from ...plans.device_kernels import Parameter
from .kernel import Constexpr


def function_name(stem: str, dtype: str, parameters: Sequence[Parameter], constants: Mapping[str, Constexpr]) -> str:
    """Unique for the code: equal names mean equal functions."""
    depends = repr((stem, dtype, tuple(parameters), sorted(constants.items())))
    return f"{stem}.{dtype}.{hashlib.sha256(depends.encode()).hexdigest()[:12]}"
