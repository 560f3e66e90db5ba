"""Mutations of modules laid out over several ranks: every one of them must be caught."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from tokenspeed.ir import dialect, module
from tokenspeed.ir.mlir import ir
from tokenspeed.ir.module import IrError
from tokenspeed.ir.sharding import PlacementConflict
from tokenspeed.ir.types import dtype_of, placement_of, shape_of, tensor, with_placement
from tokenspeed.passes.verify_spmd import verify_spmd

from ..ir.modules import decoder, mixture
from ..mesh import laid_out, mesh

Mutation = Callable[[ir.Module, random.Random], None]

TEXTS = {
    "plain": lambda: decoder(bias=True),
    "tied, two kinds of layers": lambda: decoder(layers=4, pattern=2, tied=True),
    "sinks": lambda: decoder(sinks=True, rope=False),
}


def named(parsed: ir.Module, *names: str) -> list[ir.Operation]:
    return [item for item in module.walk(module.step_block(parsed)) if item.name in names]


def drop_collective(parsed: ir.Module, chosen: random.Random) -> None:
    item = chosen.choice(named(parsed, "ts.all_reduce"))
    with_placement(item.operands[0], placement_of(item.results[0]))
    item.results[0].replace_all_uses_with(item.operands[0])
    item.erase()


def drop_collective_alone(parsed: ir.Module, chosen: random.Random) -> None:
    """Its reader gets the partial sum."""
    item = chosen.choice(named(parsed, "ts.all_reduce"))
    item.results[0].replace_all_uses_with(item.operands[0])
    item.erase()


def double_collective(parsed: ir.Module, chosen: random.Random) -> None:
    item = chosen.choice(named(parsed, "ts.all_reduce"))
    result = item.results[0]
    readers = module.readers_of(result)
    with ir.InsertionPoint(readers[0][0]):
        again = dialect.AllReduce(result.type, result, module.text("tp"), module.integer(2)).res
    readers[0][0].operands[readers[0][1]] = again


def other_axis(parsed: ir.Module, chosen: random.Random) -> None:
    item = chosen.choice(named(parsed, "ts.all_reduce", "ts.all_gather"))
    item.attributes["axis"] = module.text("ep" if module.text_attribute(item, "axis") == "tp" else "tp")


def other_placement(parsed: ir.Module, chosen: random.Random) -> None:
    """Of any one value."""
    items = [item for item in module.walk(module.step_block(parsed)) if list(item.results)]
    value = chosen.choice(list(chosen.choice(items).results))
    known = placement_of(value)
    axis = chosen.choice(sorted(known))
    choices = {"replicate", "partial", "shard(0)", "shard(1)", "shard(1, copies=2)", "shard(1, segments=2+2)"} - {known[axis]}
    value.set_type(tensor(dtype_of(value), shape_of(value), known | {axis: chosen.choice(sorted(choices))}))


def bias_on_every_rank(parsed: ir.Module, chosen: random.Random) -> None:
    item = chosen.choice([item for item in named(parsed, "ts.weight") if placement_of(item.results[0])["tp"] != "replicate"])
    with_placement(item.results[0], placement_of(item.results[0]) | {"tp": "replicate"})


def skewed_window(parsed: ir.Module, chosen: random.Random) -> None:
    cut = [item for item in named(parsed, "ts.slice") if placement_of(item.operands[0])["tp"] != "replicate"]
    item = chosen.choice(cut)
    item.attributes["start"] = module.integer(module.int_attribute(item, "start") + chosen.choice([-1, 1]))


def gather_of_fewer_ranks(parsed: ir.Module, chosen: random.Random) -> None:
    item = chosen.choice(named(parsed, "ts.all_gather"))
    item.attributes["ranks"] = module.integer(module.int_attribute(item, "ranks") + chosen.choice([-1, 1]))


MUTATIONS: tuple[Mutation, ...] = (
    drop_collective,
    drop_collective_alone,
    double_collective,
    other_axis,
    other_placement,
    bias_on_every_rank,
    skewed_window,
    gather_of_fewer_ranks,
)
EACH = 6


def expert_weight_on_every_rank(parsed: ir.Module, chosen: random.Random) -> None:
    """One of the experts' matrices, or their numbers."""
    cut = [item for item in named(parsed, "ts.weight") if placement_of(item.results[0])["ep"] == "shard(0)"]
    readers = [item for item in cut if any(user.name == "ts.moe_experts" for user, _ in module.readers_of(item.results[0]))]
    item = chosen.choice(readers)
    with_placement(item.results[0], placement_of(item.results[0]) | {"ep": "replicate"})


def numbers_of_another_mixture(parsed: ir.Module, chosen: random.Random) -> None:
    (item,) = [item for item in named(parsed, "ts.weight") if "count" in item.attributes]
    item.attributes["count"] = module.integer(module.int_attribute(item, "count") + chosen.choice([-1, 1]))


def parameters_for_numbers(parsed: ir.Module, _chosen: random.Random) -> None:
    (item,) = [item for item in named(parsed, "ts.weight") if "count" in item.attributes]
    item.attributes["parameters"] = ir.ArrayAttr.get([module.text("gate")])


def experts_without_numbers(parsed: ir.Module, _chosen: random.Random) -> None:
    """Each rank takes its own for the model's first."""
    (item,) = named(parsed, "ts.moe_experts")
    attributes = {name: item.attributes[name] for name in item.attributes}
    attributes["operandSegmentSizes"] = ir.DenseI32ArrayAttr.get([1, 1, 1, 1, 1, 0, 0, 0])
    operands, kinds = list(item.operands)[:-1], [result.type for result in item.results]
    with ir.InsertionPoint(item):
        other = ir.Operation.create(item.name, results=kinds, operands=operands, attributes=attributes)
    item.results[0].replace_all_uses_with(other.results[0])
    item.erase()


OF_EXPERTS: tuple[Mutation, ...] = (
    drop_collective,
    drop_collective_alone,
    other_axis,
    other_placement,
    expert_weight_on_every_rank,
    numbers_of_another_mixture,
    parameters_for_numbers,
    experts_without_numbers,
)


@pytest.fixture(autouse=True)
def in_context() -> Iterator[None]:
    with module.context():
        yield


@pytest.mark.parametrize("sizes", [{"tp": 2}, {"tp": 4}, {"ep": 2, "tp": 2}], ids=str)
@pytest.mark.parametrize("text", TEXTS)
def test_every_mutation_is_caught(text: str, sizes: dict[str, int]) -> None:
    all_are_caught(str(laid_out(module.parse(TEXTS[text]()), mesh(**sizes))), MUTATIONS)


@pytest.mark.parametrize("sizes", [{"ep": 2}, {"ep": 4}, {"ep": 2, "tp": 2}], ids=str)
def test_every_mutation_of_experts_is_caught(sizes: dict[str, int]) -> None:
    """Six experts: over four ranks zeros fill up."""
    all_are_caught(str(laid_out(module.parse(mixture()), mesh(**sizes))), OF_EXPERTS)


def all_are_caught(sound: str, mutations: tuple[Mutation, ...]) -> None:
    verify_spmd(module.parse(sound))
    chosen = random.Random(20261128)
    for mutate in mutations:
        for _ in range(EACH):
            parsed = module.parse(sound)
            mutate(parsed, chosen)
            if str(parsed) == sound:
                continue
            with pytest.raises((PlacementConflict, IrError)):
                module.verify(parsed)
                verify_spmd(parsed)
