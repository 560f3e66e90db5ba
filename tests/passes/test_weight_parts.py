"""Parts of weights that several mesh axes cut: what each rank reads, and that it is what its placement says."""

from __future__ import annotations

import numpy as np
import pytest
from tokenspeed.ir import dialect, module
from tokenspeed.ir.mlir import ir
from tokenspeed.ir.types import tensor
from tokenspeed.passes.weight_parts import part_of_rank
from tokenspeed.plans.recipe import Concat, Part, Recipe, Slice, Source
from tokenspeed.plans.schema import SourceTensor
from tokenspeed.runtime.recipe_evaluation import Stored, evaluate

from ..mesh import mesh

AXES = mesh(ep=2, tp=2)
Q, K = np.arange(16, dtype=np.float32), 100 + np.arange(4, dtype=np.float32)


def recipe_of(placements: dict[str, str], rows: int, whole: Recipe, shapes: list[tuple[int, ...]]) -> Recipe:
    with module.context():
        parsed, block = module.new_step()
        with ir.InsertionPoint(block):
            value = dialect.Weight(tensor("f32", [rows], placements), module.text("w"), ir.ArrayAttr.get([module.text("w")])).res
        made = part_of_rank(value, whole, shapes, AXES)
        del parsed
    return made


def values(recipe: Recipe) -> list[list[float]]:
    """Every rank's part, tp counting fastest."""
    arrays = {"q": Q, "k": K}
    stored = {
        name: Stored(SourceTensor(name=name, encoding="F32", shape=x.shape, bytes=x.nbytes), memoryview(x.tobytes()))
        for name, x in arrays.items()
    }
    places = [{"ep": ep, "tp": tp} for ep in range(2) for tp in range(2)]
    return [evaluate(recipe, stored, None, "w", place).data.tolist() for place in places]


def test_a_dimension_that_two_axes_cut() -> None:
    found = values(recipe_of({"ep": "shard(0)", "tp": "shard(0)"}, 4, Source("q"), [(16,)]))
    assert found == [part.tolist() for part in np.split(Q, 4)]


def test_zeros_fill_up_the_last_parts_of_each_part() -> None:
    """Five entries: three and two for the ranks along ep, whose ranks along tp have two and one of three, two and none of two."""
    made = recipe_of({"ep": "shard(0)", "tp": "shard(0)"}, 2, Slice(Source("q"), 0, 0, 5), [(5,)])
    assert values(made) == [[0, 1], [2, 0], [3, 4], [0, 0]]


@pytest.mark.parametrize("copies", [1, 2])
def test_segments_of_joined_weights_are_read_from_their_own_source(copies: int) -> None:
    """Keys have as many heads as there are ranks, or half as many: then neighbours along tp have the same."""
    own = 2 if copies == 2 else 1
    placements = {"ep": f"shard(0, segments=4+{own})", "tp": f"shard(0, segments=4+{own}{'*2' if copies == 2 else ''})"}
    made = recipe_of(placements, 4 + own, Concat((Source("q"), Source("k")), 0), [(16,), (4,)])
    assert isinstance(made, Concat) and all(isinstance(part, Part) and isinstance(part.of, Part) for part in made.parts)
    keys = np.split(K, 4) if copies == 1 else [part for part in np.split(K, 2) for _ in range(2)]
    expected = [np.concatenate([q, k]).tolist() for q, k in zip(np.split(Q, 4), keys, strict=True)]
    assert values(made) == expected
