"""Modules laid out over a mesh, interpreted on all of its ranks in one process: do they compute what one rank computes?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import msgspec
import numpy as np
import torch
from tokenspeed.compiler.frontends.trace import TracedModel
from tokenspeed.compiler.pipeline import fused, on_one_rank
from tokenspeed.compiler.proof import _random_parameters, _TensorWeights, weight_parts
from tokenspeed.ir import module as modules
from tokenspeed.ir.arrangement import arranged_shape, arrangement_of
from tokenspeed.ir.mlir import ir
from tokenspeed.ir.placements import GROUPS
from tokenspeed.ir.reference import Interpreter, StepRows
from tokenspeed.ir.spmd_reference import Coordinates, MeshInterpreter, StagesInterpreter, coordinates_of
from tokenspeed.passes.choose_weight_types import layers_of
from tokenspeed.passes.layer_units import units
from tokenspeed.passes.partition import partition
from tokenspeed.passes.placing.costs import Prices
from tokenspeed.passes.placing.pins import Pin, Pins
from tokenspeed.passes.select import Workload
from tokenspeed.passes.split_stages import split_stages
from tokenspeed.passes.store_weights import _arranged, _joined
from tokenspeed.passes.verify_spmd import verify_spmd
from tokenspeed.passes.verify_stages import verify_stages
from tokenspeed.passes.weight_parts import numbers_of_rank, part_of_rank
from tokenspeed.plans.mesh import groups_of
from tokenspeed.plans.recipe import Recipe, Source
from tokenspeed.plans.schema import MeshAxis, SourceTensor
from tokenspeed.plans.template import instantiate
from tokenspeed.runtime.recipe_evaluation import Stored, evaluate
from tokenspeed.targets.accelerator import Accelerator
from tokenspeed.targets.registry import find_target
from torch import Tensor

WHATEVER_CAN_BE = Pins((Pin("*", "cut"),))
"""Cut: models this small would be replicated."""

ROWS_OF_NORMS = Pins((Pin("*", "cut"), Pin("*norm*", rows="cut"), Pin("*ln*", rows="cut")))
"""And each rank does the norms of some of the rows."""


def mesh(**sizes: int) -> tuple[MeshAxis, ...]:
    return tuple(MeshAxis(name=name, size=size) for name, size in sizes.items())


def prices(target: str = "h200") -> Prices:
    """Of collectives of a library alone: sums of messages this small through each other's memory would always be the cheapest."""
    found = find_target(target)
    machine = found.without_exchanges() if isinstance(found, Accelerator) else found
    return Prices(machine, (Workload(4, 4, 0.9), Workload(512, 1, 0.1)), 4096.0)


def laid_out(raised: ir.Module, axes: Sequence[MeshAxis], pins: Pins = WHATEVER_CAN_BE, found: Prices | None = None) -> ir.Module:
    """A raised module partitioned, in place, and fused."""
    partition(raised, axes, found or prices(), pins)
    return fused(raised)


def many_rows(target: str = "cpu-avx2") -> Prices:
    """Steps of so many rows that bytes count for more than latencies."""
    return replace(prices(target), workloads=(Workload(1 << 14, 1, 1.0),))


class RankWeights(_TensorWeights):
    """A rank's part of random parameters, made by the recipes that plans carry."""

    def __init__(
        self, module: ir.Module, parameters: Mapping[str, Tensor], axes: Sequence[MeshAxis], coordinates: Coordinates
    ) -> None:
        stored = {name: _stored(name, value) for name, value in parameters.items()}
        self.made: dict[str, Tensor] = {}
        for operation in modules.walk(modules.step_block(module)):
            if operation.name == "ts.weight":
                for layer in layers_of(operation) or (0,):
                    recipe = rank_recipe(operation, layer, parameters, axes)
                    name = instantiate(modules.text_attribute(operation, "sym"), layer)
                    made = evaluate(recipe, stored, None, name, coordinates)
                    self.made[name] = torch.from_numpy(np.array(made.data))

    def full(self, name: str) -> Tensor:
        return self.made[name]

    def part(self, name: str, index: int) -> Tensor:
        return self.made[name][index]


def rank_recipe(operation: ir.Operation, layer: int, parameters: Mapping[str, Tensor], axes: Sequence[MeshAxis]) -> Recipe:
    if not modules.text_list(operation, "parameters"):
        return numbers_of_rank(operation, axes)
    steps = arrangement_of(operation)
    names = [instantiate(name, layer) for name in modules.text_list(operation, "parameters")]
    shapes = [tuple(parameters[name].shape) for name in names]
    whole = _joined([_arranged(Source(name), shape, steps) for name, shape in zip(names, shapes, strict=True)])
    arranged = [[size or 0 for size in arranged_shape(shape, steps)] for shape in shapes]
    return part_of_rank(operation.results[0], whole, arranged, axes)


def _stored(name: str, value: Tensor) -> Stored:
    source = SourceTensor(name=name, encoding="F32", shape=tuple(value.shape), bytes=value.numel() * 4)
    return Stored(source, memoryview(value.contiguous().numpy().tobytes()))


def mesh_difference(
    traced: TracedModel,
    raised: str,
    axes: Sequence[MeshAxis],
    pins: Pins = WHATEVER_CAN_BE,
    change: Callable[[ir.Module], ir.Module] = lambda placed: placed,
    judged: Prices | None = None,
) -> float:
    """The largest difference of any rank's logits from those of one rank, over two sequences in chunks; in float32.

    Along pp the layers are cut into stages as equal as can be; logits are those of the last one's ranks. Along dp each group has
    other sequences, and steps with other numbers of rows. `change` is of the module that is laid out.
    """
    parameters = _random_parameters(traced)
    whole = on_one_rank(modules.parse(raised))
    inner = [axis for axis in axes if axis.name != "pp"]
    stages = _in_stages(change(laid_out(modules.parse(raised), inner, pins, judged)), axes)
    alone = [
        Interpreter(_TensorWeights(weight_parts(whole), parameters), traced.constants, instantiate, torch.float32)
        for _ in range(groups_of(axes))
    ]
    groups = [place.get(GROUPS, 0) for place in coordinates_of([(axis.name, axis.size) for axis in inner])]
    every = StagesInterpreter([_of_stage(stage, inner, parameters, traced.constants) for stage in stages])
    worst = 0.0
    of_groups = [_steps(int(traced.config["vocab_size"]), group) for group in range(len(alone))]
    for steps in zip(*of_groups, strict=True):
        expected = [one.step(whole, rows) for one, rows in zip(alone, steps, strict=True)]
        found = every.step(stages, lambda place, steps=steps: steps[place.get(GROUPS, 0)])
        worst = max(worst, *(float((expected[group] - own).abs().max()) for group, own in zip(groups, found, strict=True)))
    return worst


def _in_stages(placed: ir.Module, axes: Sequence[MeshAxis]) -> Sequence[ir.Module]:
    count = math.prod(axis.size for axis in axes if axis.name == "pp")
    layers = len(units(modules.step_block(placed)))
    stages = split_stages(placed, [layers * number // count for number in range(1, count)])
    for stage in stages:
        verify_spmd(stage)
    if count > 1:
        verify_stages(stages, [(axis.name, axis.size) for axis in axes])
    return stages


def _of_stage(
    stage: ir.Module, axes: Sequence[MeshAxis], parameters: Mapping[str, Tensor], constants: dict[str, Tensor]
) -> MeshInterpreter:
    def weights(coordinates: Coordinates) -> RankWeights:
        return RankWeights(stage, parameters, axes, coordinates)

    return MeshInterpreter([(axis.name, axis.size) for axis in axes], weights, constants, instantiate, torch.float32)


def _steps(vocabulary: int, group: int = 0) -> list[StepRows]:
    """A prompt and a chunk of another; its rest beside a decode row."""
    ids = torch.randint(3, vocabulary, (2, 16), generator=torch.Generator().manual_seed(5 + group))
    prompt, start = 9 - 2 * group, 4 + group
    first = torch.cat([ids[0, :prompt], ids[1, :start]])
    second = torch.cat([ids[0, prompt : prompt + 1], ids[1, start:11]])
    rows, more = prompt + start, 12 - start
    return [
        StepRows(
            first,
            torch.cat([torch.arange(prompt), torch.arange(start)]),
            [(0, 0, prompt), (1, prompt, rows)],
            torch.arange(rows),
        ),
        StepRows(
            second,
            torch.cat([torch.arange(prompt, prompt + 1), torch.arange(start, 11)]),
            [(0, 0, 1), (1, 1, more)],
            torch.arange(more),
        ),
    ]


def cheap_links(found: Prices) -> Prices:
    """Links so fast that cutting always pays."""
    rates = dict(found.machine.rates)
    for name, rate in rates.items():
        if name.startswith(("compute", "bandwidth")):
            rates[name] = msgspec.structs.replace(rate, value=rate.value / 1e7)
    return replace(found, machine=replace(found.machine, rates=rates))
