"""Which list of modules is the list of layers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tokenspeed.compiler.frontends.layer_list import find_layer_list, keep_listed
from tokenspeed.plans.errors import ModelError
from torch import Tensor, nn


class Parts(nn.Module):
    """A model with an image encoder as deep as its decoder, which text does not go through."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = nn.ModuleList([nn.Identity(), nn.Identity()])
        self.decoder = nn.ModuleList([nn.Identity(), nn.Identity()])
        self.cross_attention_layers = [1, 3]

    def forward(self, input_ids: Tensor, **_: object) -> Tensor:
        for layer in self.decoder:
            input_ids = layer(input_ids)
        return input_ids


def test_of_lists_as_long_the_one_that_text_goes_through_is_taken() -> None:
    found = find_layer_list(Parts(), 2, "parts")
    assert found.path == "decoder" and len(found.layers) == 2 and found.beside == ()


class SideBySide(nn.Module):
    """A model whose layers' attentions and norms lie in lists of their own, with projections as many before them."""

    def __init__(self) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([nn.Identity(), nn.Identity()])
        self.norms = nn.ModuleList([nn.Identity(), nn.Identity()])
        self.projections = nn.ModuleList([nn.Identity(), nn.Identity()])

    def forward(self, input_ids: Tensor, **_: object) -> Tensor:
        assert input_ids.max().item() <= input_ids.shape[1]
        for projection in self.projections:
            input_ids = projection(input_ids)
        for attention, norm in zip(self.attentions, self.norms, strict=True):
            input_ids = norm(attention(input_ids))
        return input_ids


def test_lists_whose_modules_take_turns_hold_parts_of_the_layers() -> None:
    found = find_layer_list(SideBySide(), 2, "parts")
    assert (found.path, found.beside) == ("attentions", ("norms",))


def test_a_model_without_such_a_list_is_refused() -> None:
    with pytest.raises(ModelError, match="no list of 5 layers"):
        find_layer_list(Parts(), 5, "parts")


def test_layers_listed_by_index_are_those_that_are_kept() -> None:
    model, config = Parts(), SimpleNamespace(cross_attention_layers=[1, 3])
    keep_listed(model, config, [0, 3])
    assert model.cross_attention_layers == config.cross_attention_layers == [1]
    assert torch.equal(model(torch.ones(1)), torch.ones(1))
