"""The graph cut at its layers does not depend on the order in which a model happens to compute what they share."""

from __future__ import annotations

from itertools import permutations
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenspeed.compiler.frontends.aten_graph import clean, target_name
from torch.fx import Graph, Node

_OPERATIONS = {"cos": torch.ops.aten.cos.default, "sin": torch.ops.aten.sin.default, "exp": torch.ops.aten.exp.default}
_SHAPES = {"cos": (5,), "sin": (5,), "exp": (1, 5)}


def _traced(order: tuple[str, ...]) -> Any:
    """One layer that uses three values of the positions, which come in this order before it."""
    graph = Graph()
    positions = _with(graph.placeholder("positions"), (5,))
    shared = {name: _with(graph.call_function(_OPERATIONS[name], (positions,)), _SHAPES[name]) for name in order}
    hidden = shared["exp"]
    for name in ("sin", "cos"):
        hidden = _with(graph.call_function(torch.ops.aten.mul.Tensor, (hidden, shared[name])), (1, 5), layer=True)
    graph.output((_with(graph.call_function(torch.ops.aten.neg.default, (hidden,)), (1, 5)),))
    return SimpleNamespace(
        exported=SimpleNamespace(graph=graph), layers_path="layers", beside=(), kinds=(0,), architecture="Tiny", mixers=()
    )


def _with(node: Node, shape: tuple[int, ...], layer: bool = False) -> Node:
    node.meta["val"] = torch.empty(shape)
    node.meta["nn_module_stack"] = {"": ("model.layers.0" if layer else "model", object)}
    return node


@pytest.mark.parametrize("order", list(permutations(_OPERATIONS)))
def test_what_layers_share_comes_in_the_order_of_its_use(order: tuple[str, ...]) -> None:
    graph = clean(_traced(order))
    assert [target_name(node) for node in graph.prologue.nodes] == ["aten.exp.default", "aten.sin.default", "aten.cos.default"]
    assert len(graph.layers) == 1 and len(graph.layers[0].nodes) == 2 and len(graph.epilogue.nodes) == 1
