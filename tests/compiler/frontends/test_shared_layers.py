"""Parameters that several layers hold, and what modules keep by number of layer."""

from __future__ import annotations

import torch
from tokenspeed.compiler.frontends.shared_layers import layer_numbers, renumber, shared_parameters


class _Layer(torch.nn.Module):
    def __init__(self, block: torch.nn.Module, slots: dict[int, int]) -> None:
        super().__init__()
        self.own = torch.nn.Linear(2, 2, bias=False)
        self.block = block
        self.slots = slots


def _layers() -> torch.nn.ModuleList:
    blocks = [torch.nn.Linear(2, 3, bias=False) for _ in range(2)]
    return torch.nn.ModuleList(_Layer(blocks[at % 2], {at: at // 2}) for at in range(4))


def test_shared_parameters_have_the_name_of_the_first_layer_that_holds_them() -> None:
    layers = _layers()
    names = {id(value): name for name, value in layers.named_parameters()}
    assert shared_parameters(layers, names) == [{"block.weight": f"{at % 2}.block.weight"} for at in range(4)]


def test_a_layer_of_its_own_shares_nothing() -> None:
    layer = torch.nn.Linear(2, 2)
    assert shared_parameters([layer], {}) == [{}]


def test_what_is_kept_by_number_moves_with_its_layer() -> None:
    layers = _layers()
    assert layer_numbers(layers[3], 3) == (("", "slots", 1),)
    renumber(layers[3], 3, 2)
    assert layer_numbers(layers[3], 2) == (("", "slots", 1),)
    assert not layer_numbers(layers[3], 3)
