"""Models whose layers cannot be folded into repeats: layers that are run several times, and layers told apart by their number.

They are traced and imported as they are written, one layer after the other, so a program grows with its depth.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import Any

import torch
from torch import nn

_BY_NUMBER = ("hidden_size_per_layer_input", "num_kv_shared_layers")
"""Fields of configurations whose layers each get a part of one input of their own, or read the keys of another layer."""


def is_unfolded(model: nn.Module, config: Any, depth: int) -> bool:
    """Whether the `depth` layers of a model on the meta device are to be imported one by one."""
    return any(getattr(config, name, None) for name in _BY_NUMBER) or _runs_layers_again(model, depth)


def _runs_layers_again(model: nn.Module, depth: int) -> bool:
    """Whether there is no list of `depth` layers, and lists whose layers are called `depth` times together."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not lists or any(len(layers) == depth for layers in lists):
        return False
    calls: Counter[nn.Module] = Counter()
    hooks = [
        layer.register_forward_pre_hook(lambda called, _inputs: calls.update([called])) for layers in lists for layer in layers
    ]
    ids = torch.zeros(1, 2, dtype=torch.long, device="meta")
    try:
        with contextlib.suppress(Exception):  # whatever the model's own code raises it raises again when it is traced
            model(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return calls.total() == depth
