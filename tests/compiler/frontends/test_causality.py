"""Masks that models are given."""

from __future__ import annotations

import torch
from tokenspeed.compiler.frontends.causality import mask_inputs


def test_a_causal_mask_hides_what_lies_behind_each_token() -> None:
    mask = mask_inputs("causal", torch.arange(3)[None], torch.float32)["attention_mask"]
    assert mask.shape == (1, 1, 3, 3)
    assert (mask[0, 0] == 0).tolist() == [[True, False, False], [True, True, False], [True, True, True]]
    assert mask.min() == torch.finfo(torch.float32).min


def test_an_open_mask_hides_nothing_and_none_is_none() -> None:
    assert mask_inputs("open", torch.arange(3)[None], torch.float32)["attention_mask"].tolist() == [[1, 1, 1]]
    assert mask_inputs("none", torch.arange(3)[None], torch.float32) == {}
