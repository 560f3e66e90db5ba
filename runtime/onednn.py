"""Weights packed by oneDNN, through torch."""

from __future__ import annotations

import torch

from .host_arrays import HostArray

# Row blocks that oneDNN packs for; measured best at every row count on AVX2.
_PACK_ROWS = 64


def reorder(weight: HostArray) -> torch.Tensor:
    """The weight [N, K] in the layout that `linear_onednn` reads. Raises RuntimeError where oneDNN has none for its type."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.tensor, _PACK_ROWS)
