"""What is added for each key is a column of wider heads; contexts in which keys are left out are refused."""

from __future__ import annotations

import pytest
import torch
from tokenspeed.compiler.frontends.key_biases import give_biases_of_keys, with_biases_of_keys
from tokenspeed.plans.errors import ModelError
from torch import Tensor


class _Dynamic(torch.nn.Module):
    keep_window_size = 8

    def prepare_dynamic_mask(self, *, dt_states: Tensor, hidden_states: Tensor) -> Tensor:
        raise NotImplementedError


def test_biases_are_added_by_a_column() -> None:
    module = _Dynamic()
    give_biases_of_keys(module, context=8)
    q, k, biases = torch.randn(1, 4, 5, 6), torch.randn(1, 4, 5, 6), torch.randn(1, 4, 5)
    added = module.prepare_dynamic_mask(dt_states=biases, hidden_states=q)
    wider, keys, scale = with_biases_of_keys(module, q, k, added, 0.25)
    assert scale == 1.0
    torch.testing.assert_close(wider @ keys.transpose(2, 3), 0.25 * (q @ k.transpose(2, 3)) + biases[:, :, None])


def test_masks_of_other_modules_are_left() -> None:
    q = torch.randn(1, 4, 5, 6)
    assert with_biases_of_keys(torch.nn.Identity(), q, q, torch.zeros(1, 4, 1, 5), 0.25) == (q, q, 0.25)


def test_longer_contexts_than_are_kept_are_refused() -> None:
    with pytest.raises(ModelError, match="--max-context 8"):
        give_biases_of_keys(_Dynamic(), context=9)
