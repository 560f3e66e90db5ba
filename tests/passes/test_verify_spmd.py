"""Mutations of modules laid out over several ranks: every one of them must be caught."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from tokenspeed.ir import module
from tokenspeed.passes.verify_spmd import verify_spmd

from ..ir.modules import decoder, mixture
from ..mesh import laid_out, mesh
from ..spmd_mutations import EVENT_MUTATIONS, LAYOUTS, MUTATIONS, OF_EXPERTS, figures

TEXTS = {
    "plain": lambda: decoder(bias=True),
    "tied, two kinds of layers": lambda: decoder(layers=4, pattern=2, tied=True),
    "sinks": lambda: decoder(sinks=True, rope=False),
}


EACH = 2


@pytest.fixture(autouse=True)
def in_context() -> Iterator[None]:
    with module.context():
        yield


@pytest.mark.parametrize("layout", range(len(LAYOUTS)))
@pytest.mark.parametrize("text", TEXTS)
def test_every_mutation_is_caught(text: str, layout: int) -> None:
    sizes, pins = LAYOUTS[layout]
    sound = str(laid_out(module.parse(TEXTS[text]()), mesh(**sizes), pins))
    verify_spmd(module.parse(sound))
    tried, caught = figures(sound, sizes, EACH, random.Random(20261128))
    assert caught == tried
    kinds = {mutation.__name__ for mutation in (*MUTATIONS, *EVENT_MUTATIONS)}
    # windows are of joined projections, which is none of attention whose heads do not divide
    assert kinds - set(tried) <= {"skewed_window"}


@pytest.mark.parametrize("sizes", [{"ep": 2}, {"ep": 4}, {"ep": 2, "tp": 2}, {"dp": 2}, {"dp": 2, "tp": 2}], ids=str)
def test_every_mutation_of_experts_is_caught(sizes: dict[str, int]) -> None:
    """Six experts: over four ranks zeros fill up."""
    tried, caught = figures(str(laid_out(module.parse(mixture()), mesh(**sizes))), sizes, EACH, random.Random(20261128))
    assert caught == tried and {mutation.__name__ for mutation in OF_EXPERTS} <= set(tried)
