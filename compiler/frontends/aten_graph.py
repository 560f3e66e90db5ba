"""The exported graph, cleaned and cut into prologue, one segment per kept layer, and epilogue."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from ...plans.errors import ModelError
from .trace import TracedModel

_DROPPED = {
    "aten._assert_tensor_metadata.default",
    "aten.sym_size.int",
    "aten._assert_scalar.default",
    "aten.sym_constrain_range_for_size.default",
}
_COPIES = {
    "aten.alias.default",
    "aten.clone.default",
    "aten.contiguous.default",
    "aten.detach.default",
    "aten.lift_fresh_copy.default",
}


@dataclass(frozen=True)
class Segment:
    """Nodes in order. `live_in` is the hidden state that enters, `live_out` the one that leaves (layers only).

    The two are one for a layer without nodes, which text goes past.
    """

    nodes: tuple[Node, ...]
    live_in: Node | None = None
    live_out: Node | None = None


@dataclass(frozen=True)
class AtenGraph:
    prologue: Segment
    layers: tuple[Segment, ...]
    epilogue: Segment
    inputs: tuple[Node, ...]
    logits: Node
    replaced: dict[Node, Node]
    """Nodes that do nothing (alias, cast to the same type, times one, slice of all) and what stands for them."""

    def resolve(self, node: Node) -> Node:
        while node in self.replaced:
            node = self.replaced[node]
        return node


def target_name(node: Node) -> str:
    return str(node.target)


def result_of(node: Node) -> tuple[Node, int | None]:
    """The operation that makes the node's value, and which of its results that is (None: it has one)."""
    if node.target is operator.getitem:
        source, index = node.args
        assert isinstance(source, Node) and isinstance(index, int)
        return source, index
    return node, None


def value_of(node: Node) -> torch.Tensor:
    """The fake tensor a node stands for."""
    return node.meta["val"]


def module_path(node: Node) -> str:
    """Module path inside the model, "" when unknown."""
    stack = node.meta.get("nn_module_stack") or {}
    path = list(stack.values())[-1][0] if stack else ""
    return path.removeprefix("model.") if path != "model" else ""


def _identity_source(node: Node) -> Node | None:
    name = target_name(node)
    if name in _COPIES:
        source = node.args[0]
    elif name == "aten._to_copy.default" or (name == "aten.mul.Tensor" and node.args[1] == 1.0):
        source = node.args[0]
        if isinstance(source, Node) and value_of(source).dtype != value_of(node).dtype:
            return None
    elif name == "aten.slice.Tensor":
        source = node.args[0]
        if isinstance(source, Node) and _sizes(source) != _sizes(node):
            return None
    else:
        return None
    return source if isinstance(source, Node) else None


def _sizes(node: Node) -> list[str]:
    """The node's shape, in which equal expressions of the number of tokens are equal."""
    return [str(size) for size in value_of(node).shape]


def clean(traced: TracedModel) -> AtenGraph:
    """Drop what computes nothing and cut the graph at layer boundaries.

    Raises ModelError if a layer hands on more than one tensor, or what enters it cannot be told.
    """
    graph = traced.exported.graph
    calls, replaced = without_identities(graph)
    output = next(node for node in graph.nodes if node.op == "output")
    logits: Any = output.args[0][0]
    inputs = tuple(node for node in graph.nodes if node.op == "placeholder")
    cut = AtenGraph(Segment(()), (), Segment(()), inputs, logits, replaced)
    return _cut(traced, cut, _reachable(calls, cut))


def without_identities(graph: Graph) -> tuple[list[Node], dict[Node, Node]]:
    """The calls that compute something, in order, and what stands for those that do not."""
    replaced: dict[Node, Node] = {}
    calls: list[Node] = []
    for node in graph.nodes:
        if node.op != "call_function" or target_name(node) in _DROPPED:
            continue
        source = _identity_source(node)
        if source is not None:
            replaced[node] = source
        else:
            calls.append(node)
    return calls, replaced


def _reachable(calls: list[Node], graph: AtenGraph) -> list[Node]:
    wanted = {graph.resolve(graph.logits)}
    for node in reversed(calls):
        if node in wanted:
            wanted.update(graph.resolve(source) for source in node.all_input_nodes)
    return [node for node in calls if node in wanted]


def _cut(traced: TracedModel, graph: AtenGraph, calls: list[Node]) -> AtenGraph:
    if not traced.layers_path:
        return AtenGraph(Segment(tuple(calls)), (), Segment(()), graph.inputs, graph.resolve(graph.logits), graph.replaced)
    count = max(traced.kinds) + 1
    groups: list[list[Node]] = [[] for _ in range(count + 2)]
    places = _places(traced, calls)
    last = max(places, default=0)
    for node, place in zip(calls, places, strict=True):
        if place:
            groups[place].append(node)
        else:
            past_layers = last > 0 and any(groups[last])
            groups[count + 1 if past_layers else 0].append(node)
    layers: list[Segment] = []
    previous: Node | None = None
    for position in range(count):
        nodes = groups[position + 1]
        if not nodes and previous is not None:  # text goes past this layer
            layers.append(Segment((), previous, previous))
            continue
        live_out = _live_out(traced, graph, nodes, calls)
        live_in = previous or _first_live_in(traced, graph, nodes, live_out)
        layers.append(Segment(tuple(nodes), live_in, live_out))
        previous = live_out
    users = [node for group in groups[1:] for node in group]
    prologue, epilogue = Segment(_by_first_use(groups[0], users, graph)), Segment(tuple(groups[-1]))
    return AtenGraph(prologue, tuple(layers), epilogue, graph.inputs, graph.resolve(graph.logits), graph.replaced)


def _by_first_use(nodes: list[Node], users: list[Node], graph: AtenGraph) -> tuple[Node, ...]:
    """The nodes in the order in which what follows needs them, sources first.

    The order that a model computes them in may change from process to process: some go through sets of their layers' types.
    """
    inside = set(nodes)
    ordered: dict[Node, None] = {}
    for user in users:
        waiting = [user]
        while waiting:
            top = waiting[-1]
            sources = (source for source in map(graph.resolve, top.all_input_nodes) if source in inside)
            missing = next((source for source in sources if source not in ordered), None)
            if missing is not None:
                waiting.append(missing)
                continue
            waiting.pop()
            if top in inside:
                ordered[top] = None
    return tuple(ordered)


def _places(traced: TracedModel, calls: list[Node]) -> list[int]:
    """For each node the number of the kept layer that it is of, from 1; 0 for those of none."""
    paths = "|".join(re.escape(path) for path in (traced.layers_path, *traced.beside))
    pattern = re.compile(rf"(?:{paths})\.(\d+)(\.|$)")
    places = [int(found[1]) + 1 if (found := pattern.match(module_path(node))) else 0 for node in calls]
    if traced.beside:  # what is done between the lists is of the layer before
        end = max((at for at, place in enumerate(places) if place), default=0)
        for at in range(1, end):
            places[at] = places[at] or places[at - 1]
    return places


def _live_out(traced: TracedModel, graph: AtenGraph, nodes: list[Node], calls: list[Node]) -> Node:
    inside = set(nodes)
    leaving = {
        source for node in calls if node not in inside for source in map(graph.resolve, node.all_input_nodes) if source in inside
    }
    if len(leaving) != 1:
        raise ModelError(
            f"a layer of {traced.architecture} hands on {len(leaving)} tensors",
            where=traced.layers_path,
            expected="one hidden state from layer to layer",
            got=", ".join(sorted(node.name for node in leaving)) or "none",
        )
    return leaving.pop()


def _first_live_in(traced: TracedModel, graph: AtenGraph, nodes: list[Node], live_out: Node) -> Node:
    inside = set(nodes)
    shape = value_of(live_out).shape
    entering = {
        source
        for node in nodes
        for source in map(graph.resolve, node.all_input_nodes)
        if source not in inside and source.op == "call_function" and _has_shape(source, shape) and not _is_rotary(source)
    }
    if len(entering) != 1:
        raise ModelError(
            f"cannot tell the hidden state that enters the first layer of {traced.architecture}",
            where=traced.layers_path,
            expected="one tensor of the hidden state's shape",
            got=", ".join(sorted(node.name for node in entering)) or "none",
        )
    return entering.pop()


def _has_shape(node: Node, shape: torch.Size) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.shape == shape


def _is_rotary(node: Node) -> bool:
    return "rotary" in module_path(node) or "rope" in module_path(node)
