"""Activations that are zero but for the largest of a row (Gemma 3n): the share that is kept as a number.

The model makes the number while it runs, with checks of values that a trace does not have.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def fix_sparsity(model: nn.Module) -> None:
    """Give every such module of the model a cut-off that can be traced."""
    for module in model.modules():
        if hasattr(module, "_gaussian_topk") and getattr(module, "activation_sparsity", 0.0):
            _fix(module)


def _fix(module: Any) -> None:
    deviations = float(torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(module.activation_sparsity)))

    def largest(inputs: Tensor) -> Tensor:
        cutoff = inputs.mean(-1, keepdim=True) + inputs.std(-1, keepdim=True, unbiased=False) * deviations
        return functional.relu(inputs - cutoff)

    vars(module)["_gaussian_topk"] = largest
