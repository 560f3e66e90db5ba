"""What a model is given with its token ids."""

from __future__ import annotations

import torch
from tokenspeed.compiler.frontends.model_inputs import token_inputs

IDS, POSITIONS = torch.tensor([[5, 6, 7]]), torch.arange(3)[None]


def test_positions_are_given_as_they_are() -> None:
    given = token_inputs(torch.nn.Linear(2, 2), IDS, POSITIONS)
    assert list(given) == ["position_ids"]
    assert given["position_ids"].tolist() == [[0, 1, 2]]


def test_positions_are_counted_from_behind_the_padding_token() -> None:
    class Embeddings(torch.nn.Module):
        padding_idx = 1

        def create_position_ids_from_input_ids(self) -> None: ...

    given = token_inputs(torch.nn.Sequential(Embeddings()), IDS, POSITIONS)
    assert given["position_ids"].tolist() == [[2, 3, 4]]


def test_a_table_of_token_types_gets_zeros() -> None:
    module = torch.nn.Module()
    module.register_buffer("token_type_ids", torch.ones(1, 8, dtype=torch.long))
    assert token_inputs(module, IDS, POSITIONS)["token_type_ids"].tolist() == [[0, 0, 0]]
