"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434): shape rule and meaning of `ts.latent_attention`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Shape = tuple[int | None, ...]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def latent_shapes(operands: list[Shape], results: list[Shape]) -> str | None:
    q_nope, q_rope, latent, k_rope, kv_b = operands
    if [len(shape) for shape in operands] != [3, 3, 2, 2, 2]:
        return f"expects q_nope, q_rope [rows, heads, d], latent[rows, r], k_rope[rows, d] and kv_b, got {operands}"
    rows, heads, nope = q_nope
    if q_rope != (rows, heads, k_rope[1]) or latent[0] != rows or k_rope[0] != rows:
        return f"q_nope {q_nope}, q_rope {q_rope}, latent {latent} and k_rope {k_rope} do not fit together"
    values = (kv_b[0] or 0) // (heads or 1) - (nope or 0)
    if (kv_b[0] or 0) % (heads or 1) or values < 1 or kv_b[1] != latent[1]:
        return f"kv_b is {kv_b}, expected [{heads} x ({nope} + value features), {latent[1]}]"
    return None if results[0] == (rows, heads, values) else f"result is {results[0]}, expected {(rows, heads, values)}"


def attend(q_nope: Tensor, q_rope: Tensor, latent: Tensor, k_rope: Tensor, kv_b: Tensor, causal: Attend) -> Tensor:
    """Attention of the last rows of a sequence over its latents[context, r] and rotated keys k_rope[context, d].

    Keys and values of every head are made from the latents first, as the paper defines them; `causal(q, k, v)` attends.
    """
    heads, nope = q_nope.shape[1:]
    expanded = (latent @ kv_b.T).unflatten(1, (heads, -1))
    k = torch.cat([expanded[..., :nope], k_rope[:, None].expand(-1, heads, -1)], dim=-1)
    return causal(torch.cat([q_nope, q_rope], dim=-1), k, expanded[..., nope:])
