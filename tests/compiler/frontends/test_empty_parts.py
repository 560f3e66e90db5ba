"""Concatenations lose their parts without elements, and nothing else."""

from __future__ import annotations

import pytest
import torch
from tokenspeed.compiler.frontends.empty_parts import leave_out_empty_parts
from torch import Tensor


class _Turned(torch.nn.Module):
    """Turns the first `width` of 4 features and hands on the rest, as partial rope does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([-x[..., : self.width], x[..., self.width :]], dim=-1) * 2


@pytest.mark.parametrize(("width", "left"), [(0, 0), (3, 1), (4, 0)])
def test_a_part_of_no_elements_is_left_out(width: int, left: int) -> None:
    x = torch.arange(12.0).reshape(3, 4)
    model = _Turned(width)
    exported = torch.export.export(model, (x,), strict=False)
    leave_out_empty_parts(exported)
    joined = [node for node in exported.graph.nodes if node.target is torch.ops.aten.cat.default]
    assert len(joined) == left
    exported.graph_module.recompile()
    (result,) = exported.graph_module(x)
    torch.testing.assert_close(result, model(x))
