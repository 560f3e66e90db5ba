"""Which logit rows of a step ask for what, worked out once a step."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from .base import Context

# Scratch of the sampling functions (about 24 bytes a logit) is bounded by working on this many logits at a time.
BLOCK_LOGITS = 1 << 20


class Requested:
    """`slots`[L] of the logit rows, the union of their feature bits, and the rows that have a given bit."""

    def __init__(self, logit_slots: torch.Tensor, features: torch.Tensor) -> None:
        self.slots: NDArray[np.int32] = logit_slots.numpy()
        self._features = features.numpy()
        self._step = -1
        self._bits: NDArray[np.int32] = self._features[:0]
        self.any = 0

    def refresh(self, step: int) -> None:
        if self._step != step:
            self._step = step
            # a padded row (slot -1) asks for nothing
            self._bits = np.where(self.slots >= 0, self._features[self.slots], 0)
            self.any = int(np.bitwise_or.reduce(self._bits)) if len(self._bits) else 0

    def rows(self, bits: int) -> NDArray[np.int64]:
        return np.flatnonzero(self._bits & bits)

    def has(self, rows: NDArray[np.int64], bits: int) -> NDArray[np.bool_]:
        return (self._bits[rows] & bits) != 0


def requested(context: Context, logit_slots: torch.Tensor, features: torch.Tensor) -> Requested:
    key = ("requested", logit_slots.data_ptr(), len(logit_slots), features.data_ptr())
    return context.shared(key, Requested, lambda: Requested(logit_slots, features))


def blocks(rows: NDArray[np.int64], vocabulary: int) -> list[NDArray[np.int64]]:
    """Rows in groups whose logits stay within the scratch bound."""
    size = max(1, BLOCK_LOGITS // vocabulary)
    return [rows[start : start + size] for start in range(0, len(rows), size)]
