"""What the experts of a mixture cost, on the busiest of the ranks that share them out: a step waits for that one."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

UNEVENNESS = 0.5
"""How unevenly experts are hit: the standard deviation of their shares of all pairs over the mean. Set, not measured."""


@dataclass(frozen=True)
class Load:
    """Experts of a rank that are hit, and pairs of a row and one of them."""

    experts: float
    pairs: float


def busiest(held: float, experts: int, top_k: int, rows: int) -> Load:
    """Expected load of the busiest rank, each of which holds `held` of the model's `experts`, where each row selects `top_k`.

    Of one rank it is the load itself. Otherwise both numbers are taken as normal (binomial, for pairs together with the experts'
    unevenness), of which there are as many as ranks; the largest one's expectation is Blom's (1958).
    """
    ranks = experts / held
    hit = 1 - (1 - top_k / experts) ** rows
    pairs = rows * top_k / ranks
    if ranks <= 1:
        return Load(held * hit, pairs)
    above = max(0.0, NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25)))
    spread_experts = sqrt(held * hit * (1 - hit))
    spread_pairs = sqrt(pairs * (1 - 1 / ranks) + (pairs * UNEVENNESS) ** 2 / held)
    most = min(rows * top_k, rows * held)
    return Load(min(held, held * hit + above * spread_experts), min(most, pairs + above * spread_pairs))
