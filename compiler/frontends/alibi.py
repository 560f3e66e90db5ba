"""Attention with linear biases (Press et al. 2021, arXiv:2108.12409), as attention of heads that are two columns wider.

To the score of a query and a key, slope * (key's position) is added; what is added for the query's position changes nothing
after a softmax. A column of slopes beside queries and one of positions beside keys add just that. There are two of each,
multiples of 256 apart from the rest, so that bfloat16 holds them exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

_STEP = 256
"""All whole numbers up to it are bfloat16 numbers."""
_CLOSE = 1e-5
"""Of the largest bias: float32 rounds sums of this many."""

aten = torch.ops.aten


def slopes_of(added: Tensor, seen: Tensor) -> Tensor | None:
    """Slopes [heads] of what is added to scores, [heads, queries, keys], where `seen` [queries, keys]; None if it has none."""
    tokens = seen.shape[0]
    first = int(seen[-1].to(torch.uint8).argmax())
    added = added.double()
    slopes = (added[:, -1, -1] - added[:, -1, first]) / max(tokens - 1 - first, 1)
    distance = torch.arange(tokens)[None, :] - torch.arange(tokens)[:, None]
    for head, slope in zip(added, slopes, strict=True):
        linear = head.diagonal()[:, None] + slope * distance
        largest = float(head[seen].abs().max())
        if not bool(((head - linear).abs()[seen] <= _CLOSE * max(largest, 1.0)).all()):
            return None
    return slopes.float()


def with_columns_of_positions(
    call: Callable[..., Node], heads: tuple[Node, Node], scale: float, slopes: Node, positions: Node
) -> tuple[Node, Node]:
    """Queries and keys [1, heads, tokens, head_dim + 2] whose products are scaled scores with slope * position added.

    `call` makes a node of an operation and its arguments; `slopes` are [heads], `positions` [1, tokens].
    """
    q, k = heads
    dtype = q.meta["val"].dtype
    scaled = call(aten.mul.Tensor, q, scale)
    pairs = call(aten.stack.default, [call(aten.mul.Tensor, slopes, float(_STEP)), slopes], -1)
    pairs = _cast(call, call(aten.view.default, pairs, [1, -1, 1, 2]), dtype)
    ones = call(aten.ones_like.default, call(aten.slice.Tensor, q, 3, 0, 2))
    q = call(aten.cat.default, [scaled, call(aten.mul.Tensor, ones, pairs)], -1)
    parts = [call(aten.floor_divide.Scalar, positions, _STEP), call(aten.remainder.Scalar, positions, _STEP)]
    found = _cast(call, call(aten.unsqueeze.default, call(aten.stack.default, parts, -1), 1), dtype)
    groups = k.meta["val"].shape[1]
    found = call(aten.repeat.default, found, [1, groups, 1, 1])
    return q, call(aten.cat.default, [k, found], -1)


def _cast(call: Callable[..., Any], node: Node, dtype: torch.dtype) -> Node:
    return node if node.meta["val"].dtype == dtype else call(aten._to_copy.default, node, dtype=dtype)
