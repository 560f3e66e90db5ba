"""Rope whose frequencies depend on how long the longest sequence of a batch is: fixed, for the longest context of the plan.

transformers recomputes them at each call, so that keys already cached were turned by other frequencies than new ones. A trace
cannot have that, nor should one request change another's logits.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

FROZEN = "frozen"
"""A rope type that transformers does not know, and so leaves alone."""


def freeze_rope(model: torch.nn.Module, context: int) -> dict[str, torch.Tensor]:
    """Make rope of the types "dynamic" and "longrope" static; gives back their frequencies, by the names of their buffers.

    longrope (Ding et al. 2024, arXiv:2402.13753) takes its long factors when `context` is over the original maximum, else its
    short ones; dynamic NTK scaling takes the scale of that context.
    """
    frequencies: dict[str, torch.Tensor] = {}
    for path, module in model.named_modules():
        holder: Any = module
        kinds = getattr(holder, "rope_type", None)
        if isinstance(kinds, str) and _changes(kinds):
            frequencies[f"{path}.inv_freq"] = ROPE_INIT_FUNCTIONS[kinds](holder.config, torch.device("cpu"), seq_len=context)[0]
            holder.rope_type = FROZEN
        elif isinstance(kinds, dict):
            for layers, kind in kinds.items():
                if _changes(kind):
                    made = ROPE_INIT_FUNCTIONS[kind](holder.config, torch.device("cpu"), seq_len=context, layer_type=layers)
                    frequencies[f"{path}.{layers}_inv_freq"] = made[0]
            holder.rope_type = {layers: FROZEN if _changes(kind) else kind for layers, kind in kinds.items()}
    return frequencies


def _changes(kind: str) -> bool:
    return kind == "longrope" or "dynamic" in kind
