"""The meaning of a module on a mesh: an interpreter for each rank, in threads that meet at every collective."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .mlir import ir
from .reference import Interpreter, StepRows, Weights

Coordinates = Mapping[str, int]
"""A rank's place on each mesh axis."""


def coordinates_of(mesh: Sequence[tuple[str, int]]) -> list[Coordinates]:
    """Every rank's coordinates, the last axis counting fastest. `mesh`: axes by name, with their sizes."""
    names = [name for name, _ in mesh]
    return [dict(zip(names, place, strict=True)) for place in itertools.product(*(range(size) for _, size in mesh))]


@dataclass
class MeshInterpreter:
    """Runs a module on all ranks of a mesh; keeps their caches between steps. `weights` gives those of a rank,
    `interpreter` makes what runs it, `patience` is how many seconds ranks wait for each other."""

    mesh: Sequence[tuple[str, int]]
    weights: Callable[[Coordinates], Weights]
    constants: dict[str, Tensor]
    instantiate: Callable[[str, int], str]
    dtype: torch.dtype
    interpreter: Callable[..., Interpreter] = Interpreter
    patience: float = 60.0
    ranks: list[Interpreter] = field(init=False)

    def __post_init__(self) -> None:
        places = coordinates_of(self.mesh)
        self._barrier = threading.Barrier(len(places))
        self._given: list[Tensor | None] = [None] * len(places)
        self.ranks = []
        for rank, place in enumerate(places):
            peers = {axis: [at for at, other in enumerate(places) if _same_but(place, other, axis)] for axis, _ in self.mesh}
            interpreter = self.interpreter(self.weights(place), self.constants, self.instantiate, self.dtype)
            interpreter.place = place
            interpreter.exchange = lambda axis, x, rank=rank, peers=peers: self._exchange(rank, peers[axis], x)
            self.ranks.append(interpreter)

    def step(self, module: ir.Module, rows: StepRows | Callable[[Coordinates], StepRows]) -> list[Tensor]:
        """Every rank's logits of one step, whose rows may be other ones on ranks that have their own.

        Raises threading.BrokenBarrierError where ranks do not meet at the same collectives.
        """
        with ThreadPoolExecutor(len(self.ranks)) as pool:
            every = [rows if isinstance(rows, StepRows) else rows(place) for place in coordinates_of(self.mesh)]
            running = [pool.submit(self._run, rank, module, own) for rank, own in zip(self.ranks, every, strict=True)]
            return [result.result() for result in running]

    def _run(self, interpreter: Interpreter, module: ir.Module, rows: StepRows) -> Tensor:
        try:
            with module.context, ir.Location.unknown():
                return interpreter.step(module, rows)
        except BaseException:
            self._barrier.abort()
            raise

    def _exchange(self, rank: int, peers: Sequence[int], x: Tensor) -> list[Tensor]:
        self._given[rank] = x
        self._barrier.wait(self.patience)
        parts = [part for peer in peers if (part := self._given[peer]) is not None]
        self._barrier.wait(self.patience)
        return parts


@dataclass
class StagesInterpreter:
    """Runs the stages of a pipeline in order, each on its ranks of the inner axes; hands on what they send."""

    stages: Sequence[MeshInterpreter]

    def step(self, modules: Sequence[ir.Module], rows: StepRows | Callable[[Coordinates], StepRows]) -> list[Tensor]:
        """The logits of every rank of the last stage; `rows` as for one."""
        carried: list[list[Tensor]] = [[] for _ in self.stages[0].ranks]
        found: list[Tensor] = []
        for stage, module in zip(self.stages, modules, strict=True):
            for rank, values in zip(stage.ranks, carried, strict=True):
                rank.received, rank.sent = values, []
            found = stage.step(module, rows)
            assert not any(rank.received for rank in stage.ranks), "a stage left values behind"
            carried = [rank.sent for rank in stage.ranks]
        return found


def _same_but(one: Coordinates, other: Coordinates, axis: str) -> bool:
    return all(name == axis or place == other[name] for name, place in one.items())
