"""A model's own tables bound how many tokens a trace of it holds for."""

from __future__ import annotations

import pytest
import torch
from tokenspeed.compiler.frontends.token_range import export_over_tokens, require_within
from tokenspeed.plans.errors import ModelError
from torch import Tensor


class _Table(torch.nn.Module):
    """Adds a table of so many positions, cut to the length of the text."""

    def __init__(self, positions: int) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.empty(positions, device="meta"))

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        cut = self.table[: ids.shape[1]]
        assert cut.shape[0] == ids.shape[1]
        return ids + cut + positions


def _example() -> tuple[Tensor, Tensor]:
    example = torch.zeros(1, 8, dtype=torch.long, device="meta")
    return example, example.clone()


def test_a_table_bounds_the_number_of_tokens() -> None:
    exported, longest = export_over_tokens(_Table(48), _example())
    assert longest == 48
    assert any(
        not isinstance(size, int) for node in exported.graph.nodes if "val" in node.meta for size in node.meta["val"].shape
    )


def test_without_a_table_any_number_goes() -> None:
    assert export_over_tokens(torch.nn.Identity(), (_example()[0],))[1] == 0


def test_longer_contexts_are_refused_with_the_command_that_fits() -> None:
    require_within(48, 48, "tiny")
    require_within(0, 100_000, "tiny")
    with pytest.raises(ModelError, match="compile with --max-context 48"):
        require_within(48, 49, "tiny")
