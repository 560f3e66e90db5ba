"""The list of a model's layers, and the lists in configurations that name some of them by index."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ...plans.errors import ModelError

INDEX_LISTS = ("cross_attention_layers", "hybrid_layer_ids")
"""Fields that list the indices of layers of a kind."""


def find_layer_list(model: nn.Module, depth: int, model_type: str) -> tuple[str, nn.ModuleList]:
    """Path and list of the `depth` layers that text goes through: a model of several parts may have another list as long.

    Raises ModelError if there is none.
    """
    found = [
        (path, module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    if not found:
        raise ModelError(f"found no list of {depth} layers in a {model_type} model", where=type(model).__name__)
    if len(found) > 1:
        called = _called(model, [layers for _, layers in found])
        found = [item for item in found if item[1] in called] or found
    return found[0]


def _called(model: nn.Module, lists: Sequence[nn.ModuleList]) -> list[nn.ModuleList]:
    """Those of the lists whose layers take part when the model, on the meta device, is given text."""
    called: set[nn.Module] = set()
    layers = {layer for layers in lists for layer in layers}
    hooks = [layer.register_forward_pre_hook(lambda layer, _inputs: called.add(layer)) for layer in layers]
    ids = torch.zeros(1, 2, dtype=torch.long, device="meta")
    try:
        with contextlib.suppress(Exception):  # whatever the model's own code raises it raises again when it is traced
            model(input_ids=ids, use_cache=False)  # positions would be looked at, which here have no values
    finally:
        for hook in hooks:
            hook.remove()
    return [layers for layers in lists if called.intersection(layers)]


def kept_indices(listed: Sequence[int], kept: Sequence[int]) -> list[int]:
    """A list of layer indices, for the layers at the indices `kept` alone, in their order."""
    return [place for place, index in enumerate(kept) if index in listed]


def keep_listed(model: nn.Module, config: Any, kept: Sequence[int]) -> None:
    """Adapt what the configuration and the model's modules list by index to the layers at the indices `kept`."""
    for name in INDEX_LISTS:
        listed = getattr(config, name, None)
        if listed is None:
            continue
        fewer = kept_indices(listed, kept)
        setattr(config, name, fewer)
        for module in model.modules():
            if name in vars(module):
                vars(module)[name] = fewer
