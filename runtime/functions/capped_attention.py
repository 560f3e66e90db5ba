"""Attention whose scores pass through a soft cap, which torch's flash attention does not have."""

from __future__ import annotations

import torch


def capped_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, mask: torch.Tensor | None, scale: float, cap: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of q[n, h, rows, D] over k, v[n, kvh, keys, D] with scores cap * tanh(scale * q.k / cap) (Gemma 2).

    `mask` is added to the capped scores and spreads over [n, h, rows, keys]; `causal`: row i sees keys up to i. Gives the result
    in q's type and the log-sum-exp of the scores, float32[n, h, rows]. Holds scores of all rows and keys in float32.
    """
    sequences, heads, rows, _ = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    grouped = (sequences, kv_heads, heads // kv_heads * rows)
    scores = torch.matmul(q.reshape(*grouped, -1), k.transpose(2, 3)).float().view(sequences, heads, rows, keys)
    scores.mul_(scale / cap).tanh_().mul_(cap)
    if mask is not None:
        scores.add_(mask)
    if causal:
        scores.masked_fill_(torch.ones(rows, keys, dtype=torch.bool).triu_(1), -torch.inf)
    weight = scores.logsumexp(-1)
    shares = scores.softmax(-1).to(v.dtype).view(*grouped, keys)
    return torch.matmul(shares, v).view(sequences, heads, rows, -1), weight
