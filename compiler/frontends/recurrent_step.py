"""A mixer's step cut in three: what needs no state, the recurrence itself, and what no state needs.

Only the middle has to go token by token. The rest is computed for all rows of a step at once, projections above all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.export.graph_signature import InputKind
from torch.fx import Node

from .aten_graph import AtenGraph, Segment, result_of, value_of, without_identities
from .recurrence import STEP_ROWS, Mixer


@dataclass(frozen=True)
class SplitStep:
    """`rows` and `states` are the step's inputs, `operands` what enters the recurrence (values of rows first), `result` its one
    result, `new_states` what it hands on, `out` the step's result."""

    graph: AtenGraph
    rows: tuple[Node, ...]
    states: tuple[Node, ...]
    before: tuple[Node, ...]
    inside: tuple[Node, ...]
    after: tuple[Node, ...]
    operands: tuple[Node, ...]
    result: Node
    out: Node
    new_states: tuple[Node, ...]


def is_of_rows(node: Node) -> bool:
    """Whether the first dimension, and no other, is rows."""
    return [at for at, size in enumerate(value_of(node).shape) if size % STEP_ROWS == 0] == [0]


def split_step(mixer: Mixer) -> SplitStep:
    """Cut the step where values pass that stand as rows do; where others would pass, more goes into the recurrence."""
    calls, replaced = without_identities(mixer.step.graph)
    kinds = {spec.arg.name: spec.kind for spec in mixer.step.graph_signature.input_specs}
    placeholders = [node for node in mixer.step.graph.nodes if node.op == "placeholder"]
    given = [node for node in placeholders if kinds[node.name] == InputKind.USER_INPUT]
    outputs: Any = next(node for node in mixer.step.graph.nodes if node.op == "output").args[0]
    graph = AtenGraph(Segment(()), (), Segment(()), tuple(placeholders), outputs[0], replaced)
    out, *new_states = (graph.resolve(node) for node in outputs)
    made = _Made(graph, [node for node in calls if isinstance(node.meta.get("val"), torch.Tensor)])
    rows, states = tuple(given[: mixer.inputs]), tuple(given[mixer.inputs :])
    live = made.leading_to({out, *new_states})
    held = made.following(set(states)) & live
    needed = made.leading_to(set(new_states))
    inside, after, result = held, set[Node](), out
    behind = held - needed
    crossing = made.entering(behind) & ((held | set(states)) - behind)
    if out in behind and len(crossing) == 1 and all(map(is_of_rows, crossing)):
        inside, after, (result,) = held - behind, behind, crossing
    before = live - held
    if any(_depends_on_rows(node) and not is_of_rows(node) for node in made.entering(inside) & before):
        inside, before = inside | before, set[Node]()
    entering = (made.entering(inside) | set(new_states)) - inside - set(states)  # some hand on what a token is, as it is
    operands = sorted(
        (node for node in entering if not _is_number(node)), key=lambda node: (not is_of_rows(node), made.order[node])
    )
    in_order = made.in_order
    return SplitStep(
        graph, rows, states, in_order(before), in_order(inside), in_order(after), tuple(operands), result, out, tuple(new_states)
    )


def _depends_on_rows(node: Node) -> bool:
    return any(size % STEP_ROWS == 0 for size in value_of(node).shape)


def _is_number(node: Node) -> bool:
    """A buffer of one number: it becomes an argument."""
    return node.op == "placeholder" and value_of(node).ndim == 0


class _Made:
    """The tensors of a graph and what each is made of."""

    def __init__(self, graph: AtenGraph, nodes: Sequence[Node]) -> None:
        self.nodes = nodes
        self.order = {node: at for at, node in enumerate((*graph.inputs, *nodes))}
        self._sources: dict[Node, set[Node]] = {}
        for node in nodes:
            call, _ = result_of(node)
            found = map(graph.resolve, call.all_input_nodes)
            self._sources[node] = {source for source in found if isinstance(source.meta.get("val"), torch.Tensor)}

    def in_order(self, nodes: Iterable[Node]) -> tuple[Node, ...]:
        return tuple(sorted(nodes, key=lambda node: self.order[node]))

    def entering(self, nodes: set[Node]) -> set[Node]:
        return {source for node in nodes for source in self._sources.get(node, ())}

    def leading_to(self, wanted: set[Node]) -> set[Node]:
        found = wanted & self._sources.keys()
        for node in reversed(self.nodes):
            if node in found:
                found |= self._sources[node] & self._sources.keys()
        return found

    def following(self, given: set[Node]) -> set[Node]:
        found: set[Node] = set()
        for node in self.nodes:
            if self._sources[node] & (found | given):
                found.add(node)
        return found
