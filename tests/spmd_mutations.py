"""Ways to spoil a model that is laid out over several ranks; each must be caught before anything ships.

`python -m tokenspeed.tests.spmd_mutations` tries them on every tested family and prints how many were caught.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import torch
from tokenspeed.compiler.frontends.source import open_model
from tokenspeed.compiler.options import CompileOptions
from tokenspeed.compiler.pipeline import compile_model
from tokenspeed.ir import module, rank_operations
from tokenspeed.ir.mlir import ir
from tokenspeed.ir.module import IrError
from tokenspeed.ir.placements import parse_shard
from tokenspeed.ir.sharding import CHANGES, PlacementConflict
from tokenspeed.ir.types import dtype_of, placement_of, shape_of, tensor, with_placement
from tokenspeed.passes.choose_weight_types import layers_of
from tokenspeed.passes.placing.pins import Pins
from tokenspeed.passes.verify_spmd import verify_spmd
from tokenspeed.passes.verify_stages import Event, StageMismatch, play, rank_events
from tokenspeed.plans.errors import PlanError
from tokenspeed.plans.recipe import Concat, Part, Recipe
from tokenspeed.plans.schema import MeshAxis
from tokenspeed.plans.weight_integrity import _check_parts
from torch import Tensor

from .mesh import ROWS_OF_NORMS, WHATEVER_CAN_BE, laid_out, mesh, rank_recipe

Mutation = Callable[[ir.Module, random.Random], None]
"""Spoils a module in place. Raises IndexError, KeyError or ValueError where there is nothing to spoil."""

EventMutation = Callable[[list[Event], random.Random], None]

LAYOUTS: tuple[tuple[dict[str, int], Pins], ...] = (
    ({"tp": 2}, WHATEVER_CAN_BE),
    ({"tp": 4}, WHATEVER_CAN_BE),
    ({"tp": 2}, ROWS_OF_NORMS),
    ({"ep": 2, "tp": 2}, WHATEVER_CAN_BE),
    ({"ep": 2, "tp": 2}, ROWS_OF_NORMS),
)


def named(parsed: ir.Module, *names: str) -> list[ir.Operation]:
    return [item for item in module.walk(module.step_block(parsed)) if item.name in names]


def collective(parsed: ir.Module, chosen: random.Random) -> ir.Operation:
    return chosen.choice(named(parsed, *sorted(CHANGES)))


def drop_collective(parsed: ir.Module, chosen: random.Random) -> None:
    """And its operand says that it is the result."""
    item = collective(parsed, chosen)
    with_placement(item.operands[0], placement_of(item.results[0]))
    item.results[0].replace_all_uses_with(item.operands[0])
    item.erase()


def drop_collective_alone(parsed: ir.Module, chosen: random.Random) -> None:
    """Its readers get the operand as it is."""
    item = collective(parsed, chosen)
    item.results[0].replace_all_uses_with(item.operands[0])
    item.erase()


def double_collective(parsed: ir.Module, chosen: random.Random) -> None:
    """One of its readers gets what the same makes of the result."""
    item = collective(parsed, chosen)
    result = item.results[0]
    reader, position = chosen.choice(module.readers_of(result))
    with ir.InsertionPoint(reader):
        again = item.clone()
    again.operands[0] = result
    reader.operands[position] = again.results[0]


def swap_collectives(parsed: ir.Module, chosen: random.Random) -> None:
    """Two of different kinds change places: each does what the other did."""
    items = named(parsed, *sorted(CHANGES))
    one = chosen.choice(items)
    other = chosen.choice([item for item in items if item.name != one.name])
    kept = other.name, {name: other.attributes[name] for name in ("axis", "ranks", "dimension") if name in other.attributes}
    _replace(other, one.name, {name: one.attributes[name] for name in ("axis", "ranks", "dimension") if name in one.attributes})
    _replace(one, *kept)


def other_collective(parsed: ir.Module, chosen: random.Random) -> None:
    """Of another kind in its place."""
    item = collective(parsed, chosen)
    attributes = {name: item.attributes[name] for name in ("axis", "ranks", "dimension") if name in item.attributes}
    _replace(item, chosen.choice(sorted({*_KINDS} - {item.name})), {"dimension": module.integer(0), **attributes})


_KINDS = {
    "ts.all_reduce": rank_operations.AllReduce,
    "ts.all_gather": rank_operations.AllGather,
    "ts.reduce_scatter": rank_operations.ReduceScatter,
    "ts.take_part": rank_operations.TakePart,
}


def _replace(item: ir.Operation, name: str, attributes: Mapping[str, ir.Attribute]) -> None:
    wanted = ("axis", "ranks") if name == "ts.all_reduce" else ("axis", "dimension", "ranks")
    given = {"dimension": module.integer(0), **attributes}
    with ir.InsertionPoint(item):
        made = _KINDS[name](item.results[0].type, item.operands[0], *(given[each] for each in wanted))
    item.results[0].replace_all_uses_with(made.operation.results[0])
    item.erase()


def other_axis(parsed: ir.Module, chosen: random.Random) -> None:
    item = collective(parsed, chosen)
    own = module.text_attribute(item, "axis")
    item.attributes["axis"] = module.text("ep" if own == "tp" else "tp")


def other_dimension(parsed: ir.Module, chosen: random.Random) -> None:
    item = chosen.choice([item for item in named(parsed, *sorted(CHANGES)) if "dimension" in item.attributes])
    item.attributes["dimension"] = module.integer(1 - module.int_attribute(item, "dimension"))


def other_ranks(parsed: ir.Module, chosen: random.Random) -> None:
    """As many as the axis does not have, where the sizes of columns tell."""
    item = chosen.choice([item for item in named(parsed, "ts.all_gather") if module.int_attribute(item, "dimension")])
    item.attributes["ranks"] = module.integer(module.int_attribute(item, "ranks") + chosen.choice([-1, 1]))


def other_placement(parsed: ir.Module, chosen: random.Random) -> None:
    """Of any one value."""
    items = [item for item in module.walk(module.step_block(parsed)) if list(item.results)]
    value = chosen.choice(list(chosen.choice(items).results))
    known = placement_of(value)
    axis = chosen.choice(sorted(known))
    choices = {"replicate", "partial", "own", "shard(0)", "shard(1)", "shard(1, copies=2)", "shard(1, segments=2+2)"} - {
        known[axis]
    }
    value.set_type(tensor(dtype_of(value), shape_of(value), known | {axis: chosen.choice(sorted(choices))}))


def whole_weight(parsed: ir.Module, chosen: random.Random) -> None:
    """Where a part is expected; a bias that every rank adds among them."""
    cut = [item for item in named(parsed, "ts.weight") if set(placement_of(item.results[0]).values()) != {"replicate"}]
    item = chosen.choice(cut)
    with_placement(item.results[0], dict.fromkeys(placement_of(item.results[0]), "replicate"))


def skewed_window(parsed: ir.Module, chosen: random.Random) -> None:
    """Of columns that are cut; what windows of others are is the model's business."""
    item = chosen.choice([item for item in named(parsed, "ts.slice") if _cuts_columns(item)])
    item.attributes["start"] = module.integer(module.int_attribute(item, "start") + chosen.choice([-1, 1]))


def _cuts_columns(window: ir.Operation) -> bool:
    x = window.operands[0]
    cuts = (parse_shard(placement) for placement in placement_of(x).values())
    return any(cut is not None and cut.dimension == len(shape_of(x)) - 1 for cut in cuts)


MUTATIONS: tuple[Mutation, ...] = (
    drop_collective,
    drop_collective_alone,
    double_collective,
    swap_collectives,
    other_collective,
    other_axis,
    other_dimension,
    other_ranks,
    other_placement,
    whole_weight,
    skewed_window,
)
"""Of the program that all ranks run."""


def expert_weight_on_every_rank(parsed: ir.Module, chosen: random.Random) -> None:
    """One of the experts' matrices, or their numbers."""
    placed = [(item, placement_of(item.results[0])) for item in named(parsed, "ts.weight")]
    cut = [item for item, known in placed if "shard(0)" in (known.get("ep"), known.get("dp"))]
    readers = [item for item in cut if any(user.name == "ts.moe_experts" for user, _ in module.readers_of(item.results[0]))]
    item = chosen.choice(readers)
    known = placement_of(item.results[0])
    with_placement(item.results[0], known | dict.fromkeys(known.keys() & {"ep", "dp"}, "replicate"))


def numbers_of_another_mixture(parsed: ir.Module, chosen: random.Random) -> None:
    (item,) = [item for item in named(parsed, "ts.weight") if "count" in item.attributes]
    item.attributes["count"] = module.integer(module.int_attribute(item, "count") + chosen.choice([-1, 1]))


def parameters_for_numbers(parsed: ir.Module, _chosen: random.Random) -> None:
    (item,) = [item for item in named(parsed, "ts.weight") if "count" in item.attributes]
    item.attributes["parameters"] = ir.ArrayAttr.get([module.text("gate")])


def experts_without_numbers(parsed: ir.Module, _chosen: random.Random) -> None:
    """Each rank takes its own for the model's first."""
    (item,) = [item for item in named(parsed, "ts.moe_experts") if len(item.operands) == 6]
    attributes = {name: item.attributes[name] for name in item.attributes}
    attributes["operandSegmentSizes"] = ir.DenseI32ArrayAttr.get([1, 1, 1, 1, 1, 0, 0, 0])
    operands, kinds = list(item.operands)[:-1], [result.type for result in item.results]
    with ir.InsertionPoint(item):
        other = ir.Operation.create(item.name, results=kinds, operands=operands, attributes=attributes)
    item.results[0].replace_all_uses_with(other.results[0])
    item.erase()


OF_EXPERTS: tuple[Mutation, ...] = (
    expert_weight_on_every_rank,
    numbers_of_another_mixture,
    parameters_for_numbers,
    experts_without_numbers,
)
"""Of mixtures whose experts are shared out."""


def one_rank_drops(events: list[Event], chosen: random.Random) -> None:
    del events[chosen.randrange(len(events))]


def one_rank_doubles(events: list[Event], chosen: random.Random) -> None:
    at = chosen.randrange(len(events))
    events.insert(at, events[at])


def one_rank_reorders(events: list[Event], chosen: random.Random) -> None:
    """Two among the same ranks, which would take one for the other."""
    at, other = chosen.choice(
        [
            (at, other)
            for at, event in enumerate(events)
            for other in range(at + 1, len(events))
            if event.ranks == events[other].ranks and event != events[other]
        ]
    )
    events[at], events[other] = events[other], events[at]


def one_rank_asks_others(events: list[Event], chosen: random.Random) -> None:
    at = chosen.randrange(len(events))
    events[at] = Event(events[at].what, tuple(sorted({*events[at].ranks} ^ {events[at].ranks[-1]})))


EVENT_MUTATIONS: tuple[EventMutation, ...] = (one_rank_drops, one_rank_doubles, one_rank_reorders, one_rank_asks_others)
"""Of what one rank does, the others doing what they should."""


def skewed(recipe: Recipe, chosen: random.Random) -> Recipe:
    """A weight's recipe with one stretch of what ranks share out begun, ended or cut elsewhere. Raises IndexError without any."""
    if isinstance(recipe, Concat):
        parts = list(recipe.parts)
        at = chosen.choice([at for at, part in enumerate(parts) if isinstance(part, Part)])
        parts[at] = skewed(parts[at], chosen)
        return Concat(tuple(parts), recipe.dimension)
    if not isinstance(recipe, Part):
        raise IndexError("nothing is cut")
    at = chosen.randrange(len(recipe.stretches))
    stretch = recipe.stretches[at]
    change = chosen.choice([{"size": stretch.size + 1}, {"size": stretch.size - 1}, {"copies": stretch.copies * 2}])
    stretches = (*recipe.stretches[:at], msgspec.structs.replace(stretch, **change), *recipe.stretches[at + 1 :])
    return msgspec.structs.replace(recipe, stretches=stretches)


def figures(sound: str, sizes: Mapping[str, int], each: int, chosen: random.Random) -> tuple[Counter[str], Counter[str]]:
    """How often each mutation of a module that is laid out could be tried, and how often it was caught."""
    tried, caught = Counter[str](), Counter[str]()
    for mutate in (*MUTATIONS, *OF_EXPERTS):
        for _ in range(each):
            parsed = module.parse(sound)
            try:
                mutate(parsed, chosen)
            except (IndexError, KeyError, ValueError):
                continue
            if str(parsed) == sound:
                continue
            tried[mutate.__name__] += 1
            caught[mutate.__name__] += _is_refused(lambda parsed=parsed: (module.verify(parsed), verify_spmd(parsed)))
    events = rank_events([module.parse(sound)], [("pp", 1), *sizes.items()])
    for spoil in EVENT_MUTATIONS if events[0] else ():
        for _ in range(each):
            spoilt = {rank: list(items) for rank, items in events.items()}
            try:
                spoil(spoilt[chosen.choice(sorted(spoilt))], chosen)
            except IndexError:
                continue
            tried[spoil.__name__] += 1
            caught[spoil.__name__] += _is_refused(lambda spoilt=spoilt: play(spoilt, 1, 2))
    return tried, caught


def figures_of_parts(
    laid: ir.Module, parameters: Mapping[str, Tensor], axes: Sequence[MeshAxis], each: int, chosen: random.Random
) -> tuple[int, int]:
    """How many recipes of weights were skewed, and how many of these refused."""
    ranks = {axis.name: axis.size for axis in axes}
    tried = caught = 0
    weights = [item for item in named(laid, "ts.weight") if "count" not in item.attributes]
    for item in chosen.sample(weights, min(each, len(weights))):
        recipe = rank_recipe(item, next(iter(layers_of(item)), 0), parameters, axes)
        try:
            spoilt = skewed(recipe, chosen)
        except IndexError:
            continue
        tried += 1
        caught += _is_refused(lambda spoilt=spoilt: _check_parts(spoilt, ranks, "weight"))
    return tried, caught


def _is_refused(check: Callable[[], object]) -> bool:
    try:
        check()
    except (PlacementConflict, IrError, StageMismatch, PlanError):
        return True
    return False


def main(names: Sequence[str]) -> None:
    from .tiny_models import FAMILIES, MIXTURES, MORE_FAMILIES, build, save

    families = {**FAMILIES, **MORE_FAMILIES, **MIXTURES}
    tried, caught = Counter[str](), Counter[str]()
    chosen = random.Random(20261129)
    options = CompileOptions(dtype="f32", max_context=128, max_sequences=48, prefill_chunk=48)
    for name in names or families:
        with tempfile.TemporaryDirectory() as folder, module.context():
            directory = save(build(families[name]), Path(folder) / "model")
            state = compile_model(open_model(directory), options, lambda _phase, _state: None, stop_after="raise")
            parameters = {name: torch.empty(shape, device="meta") for name, shape in state.traced.parameters.items()}
            for sizes, pins in LAYOUTS:
                laid = laid_out(module.parse(state.ir_texts["raise"]), mesh(**sizes), pins)
                found = figures(str(laid), sizes, 3, chosen)
                tried += found[0]
                caught += found[1]
                of_parts = figures_of_parts(laid, parameters, mesh(**sizes), 8, chosen)
                tried["skewed_part"] += of_parts[0]
                caught["skewed_part"] += of_parts[1]
        print(f"{name}: {caught.total()} of {tried.total()} so far", file=sys.stderr, flush=True)
    for kind, count in tried.items():
        print(f"{kind:24} {caught[kind]:6} of {count}")
    print(f"{'all':24} {caught.total():6} of {tried.total()}, {len(names or families)} families, {len(LAYOUTS)} layouts each")


if __name__ == "__main__":
    main(sys.argv[1:])
