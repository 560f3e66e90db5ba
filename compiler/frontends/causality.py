"""What makes a model causal: its own masks, or one that it is given.

Some types of transformers that may be decoders (`is_decoder`) build a mask that hides nothing, so that a text's tokens see those
behind them, while tokens that are generated do not. Such a model is traced, proved and run as it is trained: with a causal mask.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ...plans.errors import ModelError

Mask = Literal["none", "open", "causal"]
"""The mask a model is given: none, one that hides no token, or one that hides what lies behind."""


class NotCausal(ModelError):
    """Attention sees tokens behind a token, or not all before it."""


def mask_inputs(mask: Mask, positions: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """Keyword arguments of a model's call on one sequence at `positions` [1, tokens]; `dtype` is that of its scores.

    An open mask is [1, tokens] as in generation, a causal one [1, 1, tokens, tokens], to be added to scores.
    """
    if mask == "none":
        return {}
    if mask == "open":
        return {"attention_mask": torch.ones_like(positions)}
    behind = positions[:, None, None, :] > positions[:, None, :, None]
    shown = torch.zeros((), dtype=dtype, device=positions.device)
    return {"attention_mask": torch.where(behind, torch.finfo(dtype).min, shown)}
