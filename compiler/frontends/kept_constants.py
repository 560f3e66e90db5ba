"""Constants that a model makes from numbers while it runs, kept as operations: on the meta device their values would be lost.

So would the numbers of a list that something is indexed with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

LONGEST = 64
"""Of lists of numbers that are kept, one operation for each number."""


class KeptConstants(TorchFunctionMode):
    """Within, torch.tensor of a number, or of a short list of numbers, is torch.full; x[..., [i], :] is x[..., i : i + 1, :]."""

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
        if function is torch.Tensor.__getitem__:
            tensor, index = args
            return function(tensor, _with_slices(index))
        return function(*args, **options)


def _numbers_of_one_type(data: object) -> bool:
    if not isinstance(data, (list, tuple)) or not 0 < len(data) <= LONGEST:
        return False
    return type(data[0]) in (bool, int, float) and all(type(number) is type(data[0]) for number in data)


def _with_slices(index: Any) -> Any:
    """An index with a slice for a list of one number, if that is the only list in it."""
    parts = index if isinstance(index, tuple) else (index,)
    lists = [part for part in parts if isinstance(part, (list, torch.Tensor))]
    if len(lists) != 1 or not isinstance(lists[0], list) or len(lists[0]) != 1 or type(lists[0][0]) is not int:
        return index
    (number,) = lists[0]
    return tuple(slice(number, number + 1 or None) if part is lists[0] else part for part in parts)
