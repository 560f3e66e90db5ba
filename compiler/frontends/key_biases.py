"""Attention whose scores get a number of each key's own added (Doge's dynamic masks), as attention of wider heads.

A column of ones beside queries and one of those numbers beside keys add them. Doge leaves keys out once there are more than it
keeps; contexts in which it would are refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...plans.errors import ModelError

_MARK = "adds_biases_of_keys"


def give_biases_of_keys(model: nn.Module, context: int) -> None:
    """Make attention with dynamic masks hand on what is added for each key, [1, key heads, 1, tokens], and no mask.

    Raises ModelError if a sequence of `context` tokens has more keys than are kept.
    """
    for module in model.modules():
        found: Any = module
        if hasattr(found, "prepare_dynamic_mask") and hasattr(found, "keep_window_size"):
            if context > found.keep_window_size:
                raise ModelError(
                    "dynamic masks are supported only for contexts in which they keep all keys",
                    where="--max-context",
                    expected=f"at most {found.keep_window_size} tokens (keep_window_size)",
                    got=str(context),
                    fix=f"compile with --max-context {found.keep_window_size}",
                )
            vars(found).update({"prepare_dynamic_mask": _each_key, "num_key_value_groups": 1, _MARK: True})


def with_biases_of_keys(
    module: nn.Module, query: Tensor, key: Tensor, biases: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, float]:
    """Query, key and scale of the same attention without biases: heads a column wider, if the module adds any."""
    if biases is None or not getattr(module, _MARK, False):
        return query, key, scale
    wider = torch.cat([query * scale, torch.ones_like(query[..., :1])], -1)
    return wider, torch.cat([key, biases.transpose(2, 3)], -1), 1.0


def _each_key(*, dt_states: Tensor, **_given: object) -> Tensor:
    return dt_states[:, :, None]
