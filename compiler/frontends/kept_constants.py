"""Constants that a model makes from numbers while it runs, kept as operations: on the meta device their values would be lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

LONGEST = 64
"""Of lists of numbers that are kept, one operation for each number."""


class KeptConstants(TorchFunctionMode):
    """Within, torch.tensor of a number, or of a short list of numbers, is torch.full."""

    def __torch_function__(
        self, function: Callable[..., Any], _types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if function is torch.tensor and options.get("requires_grad") in (None, False):
            options.pop("requires_grad", None)
            data = args[0] if args else options.pop("data")
            if isinstance(data, (bool, int, float)):
                return torch.full((), data, **options)
            if _numbers_of_one_type(data):
                return torch.cat([torch.full((1,), number, **options) for number in data])
            return function(data, **options)
        return function(*args, **options)


def _numbers_of_one_type(data: object) -> bool:
    if not isinstance(data, (list, tuple)) or not 0 < len(data) <= LONGEST:
        return False
    return type(data[0]) in (bool, int, float) and all(type(number) is type(data[0]) for number in data)
