"""Parts of no elements in concatenations, left out: what stays unturned by a rope that turns whole heads, for one."""

from __future__ import annotations

import torch
from torch.export import ExportedProgram
from torch.fx import Node

_CONCATENATIONS = (torch.ops.aten.cat.default, torch.ops.aten.concat.default)


def leave_out_empty_parts(exported: ExportedProgram) -> None:
    """Take parts without elements out of every concatenation; one that joins a single part becomes that part.

    Only dimensions of a fixed size count: the number of tokens is never 0.
    """
    graph = exported.graph
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in _CONCATENATIONS:
            continue
        parts = list(node.args[0])
        filled = [part for part in parts if not _is_empty(part)]
        if len(filled) == len(parts) or not filled:
            continue
        if len(filled) == 1:
            node.replace_all_uses_with(filled[0])
        else:
            node.args = (filled, *node.args[1:])
    graph.eliminate_dead_code()


def _is_empty(part: Node) -> bool:
    return any(isinstance(size, int) and size == 0 for size in part.meta["val"].shape)
