"""Layers that are run several times, or told apart by their number, are not folded."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from tokenspeed.compiler.frontends.unfolded import is_unfolded
from torch import Tensor, nn


class _Stacks(nn.Module):
    """Two stacks of two layers, of which the first is run `rounds` times."""

    def __init__(self, rounds: int) -> None:
        super().__init__()
        self.rounds = rounds
        self.low, self.high = (nn.ModuleList(nn.Linear(4, 4) for _ in range(2)) for _ in range(2))
        self.embed = nn.Embedding(8, 4)

    def forward(self, input_ids: Tensor, use_cache: bool) -> Tensor:
        assert not use_cache
        x = self.embed(input_ids)
        for layer in [*self.low] * self.rounds + [*self.high]:
            x = layer(x)
        return x


def test_layers_that_are_run_again() -> None:
    with torch.device("meta"):
        model = _Stacks(rounds=3)
    config = SimpleNamespace()
    assert is_unfolded(model, config, 2 * 3 + 2)
    assert not is_unfolded(model, config, 5)
    assert not is_unfolded(model, config, 2)  # a list that is as long


def test_layers_that_are_told_apart_by_their_number() -> None:
    model = nn.Module()
    assert is_unfolded(model, SimpleNamespace(num_kv_shared_layers=2), 4)
    assert is_unfolded(model, SimpleNamespace(hidden_size_per_layer_input=16), 4)
    assert not is_unfolded(model, SimpleNamespace(num_kv_shared_layers=0, hidden_size_per_layer_input=None), 4)
