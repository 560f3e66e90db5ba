"""Constants that a model makes while it is traced become operations, so that a trace keeps their values."""

from __future__ import annotations

import torch
from tokenspeed.compiler.frontends.kept_constants import KeptConstants


def test_a_list_of_one_number_picks_as_a_slice_does() -> None:
    x = torch.arange(24).view(2, 4, 3)
    with KeptConstants():
        for kept, plain in ((x[..., [-1], :], x[..., -1:, :]), (x[:, [-2]], x[:, 2:3]), (x[[0]], x[:1])):
            assert torch.equal(kept, plain)
        assert x[[1, 0]].tolist() == x.flip(0).tolist()
        assert x[[0], [1]].shape == (1, 3)
