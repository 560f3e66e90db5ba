"""What layers share: parameters that several of them hold, and modules that ask which layer they are called for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


def shared_parameters(layers: Iterable[torch.nn.Module], names: dict[int, str]) -> list[dict[str, str]]:
    """For each layer, its parameters that other layers hold too: name inside the layer, and the one name of all.

    `names` is the model's first name of each parameter, by its identity.
    """
    inside = [[(name, id(value)) for name, value in layer.named_parameters(remove_duplicate=False)] for layer in layers]
    holders: dict[int, set[int]] = {}
    for number, held in enumerate(inside):
        for _, key in held:
            holders.setdefault(key, set()).add(number)
    return [{name: names[key] for name, key in held if len(holders[key]) > 1} for held in inside]


def layer_numbers(layer: torch.nn.Module, index: int) -> tuple[tuple[str, str, int], ...]:
    """What the layer's modules keep by number of layer (module path, attribute, value for layer `index`)."""
    return tuple(
        (path, name, value[index])
        for path, module in layer.named_modules()
        for name, value in vars(module).items()
        if _is_by_layer(value) and index in value
    )


def renumber(layer: torch.nn.Module, before: int, after: int) -> None:
    """Let the layer's modules find what they keep for layer `before` under its new number."""
    for path, name, value in layer_numbers(layer, before):
        setattr(layer.get_submodule(path), name, {after: value})


def _is_by_layer(value: Any) -> bool:
    """Whether an attribute is a mapping from numbers to numbers; modules' own registries map names."""
    return isinstance(value, dict) and bool(value) and all(isinstance(item, int) for pair in value.items() for item in pair)
