"""Golden cases: the final IR interpreted in float64, at the model's true shapes, on counter-based weights.

Every repeat runs once, so each layer kind takes part and the cost does not grow with depth. Large weights are generated and
multiplied in slices of rows, so memory stays small whatever the model. Of several ranks all are interpreted, each with its parts
of whole weights, one at a time where it takes memory.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..ir import module as modules
from ..ir.mlir import ir
from ..ir.reference import StepRows
from ..ir.sharding import CHANGES
from ..ir.spmd_reference import Coordinates, MeshInterpreter, StagesInterpreter
from ..plans.golden import GoldenCase, GoldenSequence, GoldenStep
from ..plans.mesh import GROUPS, STAGES
from ..plans.rank_parts import RankPart, rank_part
from ..plans.recipe import sources
from ..plans.recipe_shapes import lookup_in
from ..plans.schema import MeshAxis, SourceTensor, Weight
from ..plans.template import instantiate
from ..plans.weight_layout import WEIGHT_BLOCKS
from .route_margins import RouteWatcher

COLUMNS = 96
SLICE_ELEMENTS = 1 << 18  # of a weight are made and multiplied at a time: few enough for a core's cache
_TORCH = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
_RELATIVE_TOLERANCE = {"f32": 2e-4, "bf16": 6e-2, "f16": 1e-2}
_OF_BLOCKS = 6e-2  # kernels round activations to 8 bits before they meet blocks

_PATIENCE_SECONDS = 3600.0
_BLOCKS_AT_ONCE = 256  # what is made of them stays in a core's cache
_CHOSEN_OTHERWISE = 3.0  # times the tolerance, where a choice of experts is so close that rounding may turn it

Steps = Sequence[Sequence[tuple[int, int, int]]]

# (key, first position, rows) for each step: packed prefill, decode beside a chunk, decode of two, decode of one
_STEPS = (((0, 0, 9), (1, 0, 5)), ((1, 5, 1), (0, 9, 4)), ((0, 13, 1), (1, 6, 1)), ((0, 14, 1),))
_STEPS_OF_A_LARGE_MODEL = _STEPS[:2]
_STEPS_OF_A_LARGE_MIXTURE = (((1, 0, 1), (0, 0, 2)), ((0, 2, 1),))
"""Nearly every row chooses experts of its own, whose weights take the time."""

LARGE_MODEL_ELEMENTS = 100_000_000


class CounterWeights:
    """Counter-based weights rounded to the plan's element type, in float64, as the rank at `coordinates` has them; large ones are
    never whole in memory. Of those that make the logits (`head`) only rows for `columns` of these.

    `turn` is held while weights are made, by as many ranks as there are cores.
    """

    def __init__(
        self,
        weights: Sequence[Weight],
        sources: Sequence[SourceTensor],
        head: Sequence[str],
        columns: Tensor,
        coordinates: Coordinates,
        turn: threading.Semaphore,
    ) -> None:
        self.weights = {instantiate(weight.name, layer): weight for weight in weights for layer in weight.layers or (0,)}
        self.head, self.columns, self.turn = head, columns.numpy(), turn
        self._sources = {source.name: source for source in sources}
        self._coordinates = coordinates
        self._parts: dict[str, RankPart] = {}

    def full(self, name: str) -> Tensor:
        if not sources(self.weights[name].recipe):  # numbers, each at its own place
            return torch.from_numpy(np.maximum(self._part(name).places[0], 0))
        with self.turn:
            if name in self.head[1:]:
                return self._rows(name, self._own_columns(name))
            return self._slice(name, 0, _rows_of(self.weights[name].shape))

    def linear(self, x: Tensor, name: str, index: int | None = None) -> Tensor:
        if name == self.head[0]:
            with self.turn:
                return x @ self._rows(name, self._own_columns(name)).T
        rows, columns = self.weights[name].shape[-2:]
        out, step = x.new_empty(len(x), rows), max(1, SLICE_ELEMENTS // columns)
        for start in range(0, rows, step):
            with self.turn:
                stop = min(rows, start + step)
                out[:, start:stop] = x @ self._slice(name, start, stop, index).T
        return out

    def rows(self, name: str, index: Tensor) -> Tensor:
        with self.turn:
            return self._rows(name, index)

    def part(self, name: str, index: int) -> Tensor:
        with self.turn:
            return self._slice(name, index, index + 1)[0]

    def _rows(self, name: str, index: Tensor) -> Tensor:
        unique, place = torch.unique(index, return_inverse=True)
        return torch.cat([self._slice(name, 0, 0), *(self._slice(name, row, row + 1) for row in unique.tolist())])[place]

    def _own_columns(self, name: str) -> Tensor:
        """Rows of this rank's part of a weight that makes logits."""
        return torch.from_numpy(np.flatnonzero(np.isin(self._part(name).places[0], self.columns)))

    def _slice(self, name: str, start: int, stop: int, index: int | None = None) -> Tensor:
        """Rows [start, stop), of entry `index` if that is given."""
        part = self._part(name)
        values = part.counter_rows(name, start, stop) if index is None else part.counter_rows_of_entry(name, index, start, stop)
        return _stored(torch.from_numpy(values), self.weights[name].dtype).double()

    def _part(self, name: str) -> RankPart:
        """All layers of a template are cut alike."""
        weight = self.weights[name]
        if weight.name not in self._parts:
            lookup = lookup_in(self._sources, weight.layers[0] if weight.layers else None)
            self._parts[weight.name] = rank_part(weight.recipe, lookup, self._coordinates)
        return self._parts[weight.name]


def _rows_of(shape: Sequence[int]) -> int:
    """A scalar counts as one row, as in `counter_weight`."""
    return shape[0] if shape else 1


def _stored(values: Tensor, dtype: str) -> Tensor:
    """Float32 values as a weight of the type holds them."""
    if not values.numel():
        return values
    if dtype not in WEIGHT_BLOCKS:
        return values.to(_TORCH[dtype]).float()
    if dtype == "e4m3_128":
        return rounded_to_float8(values)
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    kind = GGMLQuantizationType[dtype.upper()]
    return torch.from_numpy(dequantize(quantize(values.numpy(), kind), kind))


def rounded_to_float8(values: Tensor) -> Tensor:
    """Float32 values as blocks of e4m3_128 hold them: the largest of each becomes 448."""
    rounded = torch.empty(values.numel() // 128, 128)
    few = _BLOCKS_AT_ONCE
    for blocks, into in zip(values.reshape(-1, 128).split(few), rounded.split(few), strict=True):
        scales = blocks.abs().amax(1, keepdim=True) / 448.0
        codes = (blocks / torch.where(scales == 0, 1.0, scales)).to(torch.float8_e4m3fn)
        # the bits are those of a float16 whose exponent is 8 too low; torch's own way back is many times slower
        halves = codes.view(torch.int8).to(torch.int16).bitwise_left_shift_(7).bitwise_and_(-0x4001)
        torch.mul(halves.view(torch.float16).float(), scales * 256.0, out=into)
    return rounded.reshape(values.shape)


@dataclass(frozen=True)
class Replayed:
    """A step to make goldens of: its module of each stage, its weights and what they are made of, the mesh they are cut for."""

    stages: Sequence[ir.Module]
    weights: Sequence[Weight]
    sources: Sequence[SourceTensor]
    constants: dict[str, Tensor]
    vocabulary: int
    dtype: str
    mesh: Sequence[MeshAxis] = ()


def make_golden(program: Replayed, max_context: int) -> GoldenCase | None:
    """The golden case of a step on counter-based weights; None if the context is too short for its rows. Groups of ranks with
    sequences of their own all have the same ones here."""
    if max_context < 16:
        return None
    program = replace(program, mesh=_meeting(program))
    large = _ranks(program) * _used_elements(program.weights) > LARGE_MODEL_ELEMENTS
    experts = any(len(weight.shape) == 3 for weight in program.weights)
    steps = _STEPS_OF_A_LARGE_MIXTURE if experts else _STEPS_OF_A_LARGE_MODEL
    return golden_of(steps if large else _STEPS, "layers", program)


def golden_of(
    steps: Steps,
    name: str,
    program: Replayed,
    truncated: bool = True,
) -> GoldenCase:
    """A golden case with these steps, of (key of a sequence, first position, rows), sequences of one row first; each sequence
    goes on where it was.

    What is expected is computed of whole sequences: that pieces of them give the same is what a replay shows.
    """
    generator = np.random.Generator(np.random.Philox(key=20261123))
    vocabulary, dtype = program.vocabulary, program.dtype
    columns = torch.from_numpy(np.sort(generator.choice(vocabulary, min(COLUMNS, vocabulary), replace=False)))
    ends = [(key, start + rows) for step in steps for key, start, rows in step]
    tokens = {
        key: generator.integers(0, vocabulary, max(16, *(end for of, end in ends if of == key))) for key in sorted(dict(ends))
    }
    head, turn = _head(program.stages[-1]), threading.Semaphore(os.cpu_count() or 1)
    meshes = [
        MeshInterpreter(
            [(axis.name, axis.size) for axis in program.mesh if axis.name != STAGES],
            lambda rank: CounterWeights(program.weights, program.sources, head, columns, rank, turn),
            program.constants,
            instantiate,
            torch.float64,
            partial(RouteWatcher, truncate=truncated),
            _PATIENCE_SECONDS,
        )
        for _ in program.stages
    ]
    with torch.no_grad(), _one_thread_each(_ranks(program)):
        logits = StagesInterpreter(meshes).step(program.stages, _rows(steps, tokens))[0]
    made, done = [], 0
    for step in steps:
        sequences = tuple(
            GoldenSequence(key, start, tuple(map(int, tokens[key][start : start + rows]))) for key, start, rows in step
        )
        own = logits[done : done + len(step)]
        made.append(GoldenStep(sequences, own.numpy().astype("<f4").tobytes()))
        done += len(step)
    largest = float(logits.abs().max())
    blocks = any(weight.dtype in WEIGHT_BLOCKS for weight in program.weights)
    relative = max(_RELATIVE_TOLERANCE[dtype], _OF_BLOCKS if blocks else 0.0)
    if any(isinstance(rank, RouteWatcher) and rank.may_turn(dtype) for stage in meshes for rank in stage.ranks):
        relative *= _CHOSEN_OTHERWISE
    return GoldenCase(name, truncated, tuple(columns.tolist()), tuple(made), relative * max(1.0, largest))


def _meeting(program: Replayed) -> Sequence[MeshAxis]:
    """The mesh without groups of ranks that never meet: they are alike."""
    operations = (item for stage in program.stages for item in modules.walk(modules.step_block(stage)))
    changes = (item for item in operations if item.name in CHANGES)
    met = {modules.text_attribute(change, "axis") for change in changes}
    return [axis for axis in program.mesh if axis.name != GROUPS or axis.name in met]


def _ranks(program: Replayed) -> int:
    return prod(axis.size for axis in program.mesh)


def _used_elements(weights: Sequence[Weight]) -> int:
    return sum(int(np.prod(weight.shape)) for weight in weights if weight.layers)


def _head(module: ir.Module) -> list[str]:
    """Names of the weight that makes the logits and of its bias, if it has one: only the sampled columns are needed."""
    head = modules.made_by(list(modules.step_block(module).operations)[-1].operation.operands[0])
    while head.name != "ts.linear":  # a scale or a soft cap of logits works on each column by itself
        head = modules.made_by(head.operands[0])
    return [modules.text_attribute(modules.made_by(weight), "sym") for weight in list(head.operands)[1:]]


def _rows(steps: Steps, tokens: Mapping[int, NDArray[np.int64]]) -> StepRows:
    """All steps in one: each sequence whole, with the logits that the steps give, in their order. Weights are made once then."""
    spans, first, row = [], {}, 0
    for key in sorted(tokens):
        end = max(start + rows for step in steps for of, start, rows in step if of == key)
        spans.append((key, row, row + end))
        first[key] = row
        row += end
    ids = np.concatenate([tokens[key][: stop - start] for key, start, stop in spans])
    positions = torch.cat([torch.arange(stop - start) for _, start, stop in spans])
    last = [first[key] + start + rows - 1 for step in steps for key, start, rows in step]
    return StepRows(torch.from_numpy(ids), positions, spans, torch.tensor(last))


@contextmanager
def _one_thread_each(ranks: int) -> Iterator[None]:
    """Ranks that are threads already have one of torch's each."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if ranks > 1 else threads)
        yield
    finally:
        torch.set_num_threads(threads)
