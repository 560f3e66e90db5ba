"""Constants that a compiler's own rewriting adds to an exported graph."""

from __future__ import annotations

from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx import Node


def add_constant(exported: ExportedProgram, name: str, value: Tensor, like: Node) -> Node:
    """A placeholder of a buffer `name`, which no checkpoint holds, of the value's shape and type, on the device of `like`."""
    graph = exported.graph
    first = next(node for node in graph.nodes if node.op == "placeholder")
    with graph.inserting_before(first):
        node = graph.placeholder(f"b_{name}")
    with like.meta["val"].fake_mode:
        node.meta["val"] = like.meta["val"].new_empty(value.shape, dtype=value.dtype)
    spec = InputSpec(InputKind.BUFFER, TensorArgument(node.name), name, persistent=False)
    exported.graph_signature.input_specs.insert(0, spec)
    return node
