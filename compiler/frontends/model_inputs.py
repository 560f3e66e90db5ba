"""What a model is given with its token ids, so that it works out nothing from all tokens of a sequence."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor


def token_inputs(model: torch.nn.Module, ids: Tensor, positions: Tensor) -> dict[str, Tensor]:
    """Keyword arguments of the model's call; `ids` and `positions` are [1, tokens].

    A model that counts its positions from behind the padding token's id gets them counted so; one that keeps a table of
    token types, all zero, gets zeros; one that counts the tokens of each sequence is given a mask that hides none.
    """
    given = {"position_ids": positions}
    for module in model.modules():
        padding = getattr(module, "padding_idx", None)
        if hasattr(module, "create_position_ids_from_input_ids") and isinstance(padding, int):
            given["position_ids"] = positions + (padding + 1)
        if "token_type_ids" in module._buffers:
            given["token_type_ids"] = torch.zeros_like(ids)
    if "lengths" in inspect.signature(model.forward).parameters:
        given["attention_mask"] = torch.ones_like(ids)
    return given
