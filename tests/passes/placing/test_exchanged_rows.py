"""Rows that travel to the ranks of their experts and back: that they do where they go to few, and that mutations are caught."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from tokenspeed.ir import module
from tokenspeed.ir.mlir import ir
from tokenspeed.ir.module import IrError
from tokenspeed.ir.sharding import PlacementConflict
from tokenspeed.ir.types import placement_of, with_placement
from tokenspeed.passes.partition import partition
from tokenspeed.passes.placing.pins import Pin, Pins
from tokenspeed.passes.placing.search import Choice
from tokenspeed.passes.select import Workload
from tokenspeed.passes.verify_spmd import verify_spmd
from tokenspeed.targets.registry import find_target

from ...ir.modules import mixture
from ...mesh import mesh, prices

EXPERTS_CUT = Pins((Pin("experts", "cut"),))


@pytest.fixture(autouse=True)
def in_context() -> Iterator[None]:
    with module.context():
        yield


def laid_out(ranks: int, target: str = "cpu-avx2") -> tuple[ir.Module, tuple[Choice, ...]]:
    parsed = module.parse(mixture(experts=16, hidden=256))
    found = replace(prices(), machine=find_target(target), workloads=(Workload(4096, 1, 1.0),))
    return parsed, partition(parsed, mesh(dp=ranks), found, EXPERTS_CUT)


def collectives(parsed: ir.Module) -> Counter[str]:
    names = (item.name for item in module.walk(module.step_block(parsed)))
    return Counter(name for name in names if name in {"ts.all_gather", "ts.reduce_scatter", "ts.dispatch", "ts.combine"})


def test_rows_are_sent_where_they_go_to_few_of_the_ranks() -> None:
    parsed, chosen = laid_out(8)
    # where rows go is gathered
    assert collectives(parsed) == {"ts.all_gather": 2, "ts.dispatch": 1, "ts.combine": 1}
    assert next(choice for choice in chosen if choice.operation == "ts.moe_experts").strategy.results == ("dispatched",)


def test_rows_are_gathered_where_they_go_to_most_ranks_or_messages_have_a_fixed_size() -> None:
    for ranks, target in ((2, "cpu-avx2"), (8, "h200")):
        found = collectives(laid_out(ranks, target)[0])
        assert found["ts.reduce_scatter"] == 1 and not found["ts.dispatch"] and not found["ts.combine"]


def other_indices(parsed: ir.Module, item: ir.Operation) -> None:
    """Those of this rank's rows alone."""
    (route,) = [other for other in module.walk(module.step_block(parsed)) if other.name == "ts.moe_route"]
    item.operands[1] = route.results[0]


def more_experts(_parsed: ir.Module, item: ir.Operation) -> None:
    item.attributes["experts"] = module.integer(32)


def other_axis(_parsed: ir.Module, item: ir.Operation) -> None:
    item.attributes["axis"] = module.text("tp")


def replicated(_parsed: ir.Module, item: ir.Operation) -> None:
    with_placement(item.results[0], placement_of(item.results[0]) | {"dp": "replicate"})


def without_experts(_parsed: ir.Module, item: ir.Operation) -> None:
    """What is sent goes on elsewhere, or what comes back is not what experts made."""
    if item.name == "ts.dispatch":
        item.results[0].replace_all_uses_with(item.operands[0])
    else:
        item.operands[0] = module.made_by(item.operands[0]).operands[0]


@pytest.mark.parametrize("mutate", [other_indices, more_experts, other_axis, replicated, without_experts])
@pytest.mark.parametrize("name", ["ts.dispatch", "ts.combine"])
def test_every_mutation_is_caught(name: str, mutate: Callable[[ir.Module, ir.Operation], None]) -> None:
    parsed, _ = laid_out(8)
    (item,) = [other for other in module.walk(module.step_block(parsed)) if other.name == name]
    mutate(parsed, item)
    with pytest.raises((PlacementConflict, IrError)):
        module.verify(parsed)
        verify_spmd(parsed)
