"""The list of a model's layers, and the lists in configurations that name some of them by index."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...plans.errors import ModelError

INDEX_LISTS = ("cross_attention_layers", "hybrid_layer_ids")
"""Fields that list the indices of layers of a kind."""


@dataclass(frozen=True)
class LayerList:
    """The list of layers at `path`; `beside` are paths of further lists, each with a part of every layer (XLM)."""

    path: str
    layers: nn.ModuleList
    beside: tuple[str, ...] = ()


def find_layer_list(model: nn.Module, depth: int, model_type: str) -> LayerList:
    """The `depth` layers that text goes through: a model of several parts may have another list as long.

    Raises ModelError if there is none.
    """
    found = {path: module for path, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == depth}
    if not found:
        raise ModelError(f"found no list of {depth} layers in a {model_type} model", where=type(model).__name__)
    order = _order_of_calls(model, found.values()) if len(found) > 1 else {}
    called = [path for path, layers in found.items() if order.keys() & set(layers)]
    path = next(iter(called or found))
    beside = [other for other in called if other != path and _takes_turns(found[path], found[other], order)]
    return LayerList(path, found[path], tuple(beside))


def _takes_turns(layers: nn.ModuleList, others: nn.ModuleList, order: dict[nn.Module, int]) -> bool:
    """Whether each of the others is called after the layer of the same number and before the next one, not by it."""
    turns = [module for pair in zip(layers, others, strict=True) for module in pair]
    inside = {part for layer in layers for part in layer.modules()}
    if len(layers) < 2 or inside.intersection(others) or not all(module in order for module in turns):
        return False
    places = [order[module] for module in turns]
    return places == sorted(places)


class _AsIfZero(TorchFunctionMode):
    """Numbers that are read from tensors without values are 0."""

    def __torch_function__(
        self, function: Callable[..., Any], _types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        reads = {Tensor.item: 0, Tensor.__bool__: False}
        if function in reads and args[0].is_meta:
            return reads[function]
        return function(*args, **(kwargs or {}))


def _order_of_calls(model: nn.Module, lists: Iterable[nn.ModuleList]) -> dict[nn.Module, int]:
    """Those layers of the lists that take part when the model, on the meta device, is given text: when each is called first."""
    order: dict[nn.Module, int] = {}

    def note(layer: nn.Module, _inputs: object) -> None:
        order.setdefault(layer, len(order))

    hooks = [layer.register_forward_pre_hook(note) for layer in {layer for layers in lists for layer in layers}]
    ids = torch.zeros(1, 2, dtype=torch.long, device="meta")
    try:
        # whatever the model's own code raises it raises again when it is traced
        with contextlib.suppress(Exception), _AsIfZero():
            model(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return order


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
