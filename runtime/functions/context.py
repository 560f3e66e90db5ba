"""What all launches of one executor share. torch is imported by the first function that needs scratch of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import distributed

Launch = Callable[[], None]
T = TypeVar("T")


class Context:
    """State shared by all launches of one executor.

    `step` grows by one whenever the step inputs were refilled, so that what is derived from them on the host (gather
    indices, masks, flags) is made once a step, not once a layer. `groups` are this rank's by mesh axis.
    """

    def __init__(self, groups: Mapping[str, distributed.ProcessGroup] | None = None) -> None:
        self.step = 0
        self.groups: Mapping[str, distributed.ProcessGroup] = groups or {}
        self._shared: dict[Hashable, object] = {}
        self._scratch: dict[tuple[str, torch.dtype, torch.device | None], torch.Tensor] = {}

    def shared(self, key: Hashable, kind: type[T], make: Callable[[], T]) -> T:
        """The one object under `key`, made on first use; `kind` is its type."""
        found = self._shared.get(key)
        if not isinstance(found, kind):
            found = self._shared[key] = make()
        return found

    def scratch(self, purpose: str, dtype: torch.dtype, elements: int, device: torch.device | None = None) -> torch.Tensor:
        """A flat tensor that any launch may overwrite, on the host unless a device is given. Grows at preparation only, never
        during a step."""
        found = self._scratch.get((purpose, dtype, device))
        if found is None or found.numel() < elements:
            import torch

            found = self._scratch[purpose, dtype, device] = torch.empty(elements, dtype=dtype, device=device)
        return found[:elements]

    @property
    def scratch_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self._scratch.values() if tensor.device.type == "cpu")
