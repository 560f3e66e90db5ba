"""Attention that a model writes out: what is recognised keeps its scale and window, what is not certain is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenspeed.compiler.frontends.eager_attention import replace_eager_attention
from tokenspeed.compiler.frontends.kept_constants import KeptConstants
from tokenspeed.plans.errors import ModelError
from torch import Tensor

Mask = Callable[[Tensor], Tensor]
"""From distances, [tokens, tokens], to which keys are seen."""


class _Attention(torch.nn.Module):
    def __init__(self, mask: Mask, on_scores: Callable[[Tensor, Tensor], Tensor] = lambda scores, _: scores) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(16, 2 * 8, device="meta"))
        self.mask, self.on_scores = mask, on_scores

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        x = (self.weight[ids]).view(1, -1, 2, 8).transpose(1, 2)
        distance = positions[0][:, None] - positions[0][None, :]
        scores = self.on_scores(x @ x.transpose(2, 3) * 0.25, distance)
        hidden = torch.tensor(-1e9, device="meta")
        return torch.where(self.mask(distance), scores, hidden).softmax(-1) @ x


def _found(module: _Attention) -> list[tuple[float, int]]:
    """Scale and window of each attention that is found in the module's graph."""
    return [(node.args[4], node.args[5]) for node in _replaced(module, {})]


def _replaced(module: _Attention, constants: dict[str, Tensor]) -> list[Any]:
    """The calls of attention that stand in the module's graph afterwards."""
    example = torch.zeros(1, 8, dtype=torch.long, device="meta")
    tokens = torch.export.Dim("tokens", min=2, max=65536)
    with KeptConstants():
        exported = torch.export.export(
            module, (example, example.clone()), dynamic_shapes=({1: tokens}, {1: tokens}), strict=False
        )
    exported = exported.run_decompositions({})
    replace_eager_attention(exported, constants, "Tiny")
    return [node for node in exported.graph.nodes if str(node.target) == "tokenspeed.attention.default"]


def test_causal_attention_keeps_its_scale() -> None:
    assert _found(_Attention(lambda distance: distance >= 0)) == [(0.25, 0)]


@pytest.mark.parametrize("window", [64, 700])
def test_a_window_of_any_length_is_seen(window: int) -> None:
    assert _found(_Attention(lambda distance: (distance >= 0) & (distance < window))) == [(0.25, window)]


def test_a_window_made_of_two_numbers_is_seen() -> None:
    assert _found(_Attention(lambda distance: (distance >= 0) & (distance - 400 < 500))) == [(0.25, 900)]


def test_a_mask_may_take_the_shape_of_what_the_text_says() -> None:
    def causal_outside_of_images(scores: Tensor, distance: Tensor) -> Tensor:
        kinds = torch.zeros_like(scores[0, 0, :, 0], dtype=torch.int)
        groups = torch.where(kinds == 1, 0, -1)
        image = (groups[:, None] == groups[None, :]) & (groups[:, None] >= 0)
        return torch.where((distance >= 0) | image, scores, -1e9)

    assert _found(_Attention(lambda distance: distance == distance, causal_outside_of_images)) == [(0.25, 0)]


@pytest.mark.parametrize(
    ("mask", "got"),
    [
        (lambda distance: (distance >= 0) & (distance * 3 < 90), "lt"),
        (lambda distance: (distance >= 0) & (distance.float() < 30.0), "lt"),
        (lambda distance: (distance >= 0) & (distance.float().sqrt() < 30.0), "sqrt"),
        (lambda distance: (distance >= 0) & (distance < 100000), "100003 tokens"),
        (lambda distance: distance >= -1, "another mask"),
    ],
)
def test_a_mask_that_is_not_certain_is_refused(mask: Mask, got: str) -> None:
    with pytest.raises(ModelError) as refused:
        _found(_Attention(mask))
    assert got in str(refused.value.got)


def test_a_bias_that_grows_with_distance_becomes_columns_of_heads() -> None:
    def alibi(scores: Tensor, distance: Tensor) -> Tensor:
        return scores - distance * torch.stack([torch.full((), slope, device="meta") for slope in (0.5, 0.125)])[:, None, None]

    module = _Attention(lambda distance: distance >= 0, alibi)
    assert _found(module) == [(1.0, 0)]
    constants: dict[str, Tensor] = {}
    calls = _replaced(module, constants)
    assert [tuple(node.meta["val"].shape)[3] for node in calls[0].args[:3]] == [10, 10, 8]
    assert [value.tolist() for value in constants.values()] == [[0.5, 0.125]]


@pytest.mark.parametrize(
    "bias",
    [
        lambda scores, distance: scores - distance * distance * 0.01,
        lambda scores, distance: scores - (distance * 0.1).clamp(max=3.0),
        lambda scores, distance: scores + torch.where(distance < 3, 1.0, 0.0),
    ],
)
def test_another_bias_of_distances_is_refused(bias: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(ModelError):
        _found(_Attention(lambda distance: distance >= 0, bias))


def test_constants_made_while_the_model_runs_keep_their_values() -> None:
    with KeptConstants():
        assert torch.tensor(2.5).item() == 2.5
        assert torch.tensor([1, 2]).tolist() == [1, 2]
        assert torch.tensor([True, False]).dtype == torch.bool
        assert torch.tensor([[1, 2], [3, 4]]).shape == (2, 2)


class _SplitAttention(_Attention):
    """Queries, keys and values are the parts of one projection."""

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        q, k, v = (self.weight[ids].view(1, -1, 2, 8).transpose(1, 2) for _ in range(3))
        q, k, v = torch.cat([q, k, v], -1).split(8, -1)
        seen = positions[0][:, None] >= positions[0][None, :]
        return torch.where(seen, q @ k.transpose(2, 3), -1e9).softmax(-1) @ v


def test_parts_of_one_projection_are_attended_with() -> None:
    assert _found(_SplitAttention(lambda distance: distance >= 0)) == [(1.0, 0)]
