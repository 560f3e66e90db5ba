"""Page-locked host memory in pieces, made by a thread of its own: to lock many gigabytes takes longer than to load weights."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...plans.errors import TokenspeedError
from .device import Device


class PageLockedPieces:
    """Pieces of these sizes, made in order. What making one raises is raised to who asks for it."""

    def __init__(self, device: Device, sizes: Sequence[int], purpose: str) -> None:
        self._device, self._purpose = device, purpose
        self._made: list[NDArray[np.uint8]] = []
        self._count = len(sizes)
        self._failed: TokenspeedError | None = None
        self._changed, self._ends = threading.Condition(), False
        self._thread = threading.Thread(target=self._make, args=(tuple(sizes),), name="page-locking", daemon=True)

    def start(self) -> None:
        """Begin to make them."""
        self._thread.start()

    def address(self, piece: int) -> int:
        """Where that piece is; waits until it is made."""
        return self.memory(piece).ctypes.data

    def memory(self, piece: int) -> NDArray[np.uint8]:
        """Its bytes; waits until it is made."""
        made = self._made
        if piece >= len(made):
            with self._changed:
                self._changed.wait_for(lambda: piece < len(made) or self._failed is not None)
            if piece >= len(made) and self._failed is not None:
                raise self._failed
        return made[piece]

    def wait(self) -> None:
        """Until all are made."""
        self.address(self._count - 1)

    def close(self) -> None:
        """Make no more; those that are made are given back with the device."""
        self._ends = True
        if self._thread.ident is not None:
            self._thread.join()

    def _make(self, sizes: Sequence[int]) -> None:
        try:
            self._device.make_current()
            for size in sizes:
                if self._ends:
                    return
                memory = self._device.allocate_host(size, self._purpose, zeroed=False)
                with self._changed:
                    self._made.append(memory)
                    self._changed.notify_all()
        except TokenspeedError as error:
            with self._changed:
                self._failed = error
                self._changed.notify_all()
