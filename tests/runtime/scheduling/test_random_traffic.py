from __future__ import annotations

from .random_traffic import Figures, play


def test_sessions_that_go_on_over_a_small_pool_and_a_host_tier():
    figures = Figures()
    for seed in range(40):
        play(seed, figures)
    assert figures.loaded > 100 and figures.saved > 1000 and figures.evictions > 500 and figures.preemptions > 20


def test_sessions_that_go_on_over_a_tier_on_disk():
    figures = Figures()
    for seed in range(20):
        play(seed, figures, on_disk=True)
    assert figures.stored > 150 and figures.fetched > 3 and figures.restored > 10 and figures.refused > 0
