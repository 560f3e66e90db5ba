"""How many tokens of a mask have to be looked at, for none of its windows to be longer.

A window begins where positions, plus and minus numbers, are compared. So it is no longer than the sum of all numbers that the
mask's operations hold, provided that they do nothing to positions but add and compare. Whatever else they do is refused.

What is added to scores may be more than that, but only sums and products of positions: polynomials, which are what they look
like over that many tokens. Nothing of theirs may be compared.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from typing import NoReturn

import torch
from torch import Tensor
from torch.fx import Node

from ...plans.errors import ModelError

SHORTEST = 64
"""Tokens that are looked at where a mask holds no greater numbers."""
_SENTINEL = 1 << 40
"""Ends of slices from here on mean all that there is."""
_MOVES = {
    "add",
    "alias",
    "arange",
    "cat",
    "clone",
    "detach",
    "diff",
    "expand",
    "full",
    "full_like",
    "index",
    "lift_fresh_copy",
    "neg",
    "new_ones",
    "new_zeros",
    "ones",
    "ones_like",
    "permute",
    "repeat",
    "reshape",
    "rsub",
    "select",
    "slice",
    "squeeze",
    "sub",
    "sym_size",
    "_to_copy",
    "transpose",
    "unsqueeze",
    "view",
    "zeros",
    "zeros_like",
}
"""Operations on positions that a window may have been made with."""
_ON_SCORES = {"add", "div", "full", "full_like", "masked_fill", "mul", "rsub", "sub", "where"}
"""Operations on scores whose numbers are scales and what stands for minus infinity."""
_OF_AMOUNTS = (_MOVES - {"cat", "diff", "index"}) | {"_unsafe_view", "cumsum", "div", "masked_fill", "mul", "where"}
"""Operations on what is added to scores that keep it a polynomial, where no mask changes it."""
_ON_SIZES = (operator.add, operator.neg, operator.sub, torch.sym_max, torch.sym_min)


def tokens_to_look_at(
    nodes: Iterable[Node], given: dict[Node, Tensor], positions: set[Node], value_of: Callable[[Node], Tensor]
) -> int:
    """Of a mask made by `nodes` of a graph, from values `given`; `positions` are the inputs that are as long as the text.

    `value_of` works out a node that does not depend on the text. Raises ModelError for an operation that may make a window of
    another length than its numbers say.
    """
    total = 0.0
    tables: list[int] = []
    of_texts: set[Node] = set(positions)
    amounts: set[Node] = set()
    made = [node for node in sorted(nodes) if node not in positions]
    for node in made:
        if node not in given and _depends_on_texts(node, of_texts):
            of_texts.add(node)
            if _is_amount(node, amounts, of_texts):
                amounts.add(node)
            else:
                _require_simple(node)
                total += _numbers(node)
    for node in made:
        if node not in of_texts and any(user in of_texts for user in node.users) and isinstance(node.meta.get("val"), Tensor):
            value = given[node] if node in given else value_of(node)
            if value.ndim > 1 and value.shape[-1] > 1:
                tables.append(value.shape[-1])
            elif _kind(value) == "number":
                total += float(value.abs().sum())
    return max([SHORTEST, int(total) + 2, *tables])


def _depends_on_texts(node: Node, of_texts: set[Node]) -> bool:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return not isinstance(value, (bool, int, float))
    return any(source in of_texts for source in node.all_input_nodes) or not all(isinstance(size, int) for size in value.shape)


def _is_amount(node: Node, amounts: set[Node], of_texts: set[Node]) -> bool:
    """Whether positions are multiplied, summed up or made scores in a node, or what is made of that is used in it.

    Raises ModelError if it is then no polynomial of positions any more.
    """
    value, name = node.meta.get("val"), _name(node)
    if not isinstance(value, Tensor):
        return False
    kinds = {_kind(source.meta["val"]) for source in node.all_input_nodes if source in of_texts and _is_tensor(source)}
    grows = _kind(value) != "mask" and "number" in kinds and name in {"cumsum", "mul"}
    grows |= _kind(value) == "score" and ("number" in kinds or (name == "cumsum" and "score" in kinds))
    if not grows and not any(source in amounts for source in node.all_input_nodes):
        return False
    if _kind(value) == "mask" or name not in _OF_AMOUNTS:
        _refuse(node)
    return True


def _is_tensor(node: Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def _require_simple(node: Node) -> None:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        if str(node.target).startswith(("aten.sym_", "aten._assert")) or node.target in _ON_SIZES:
            return
    else:
        kinds = {_kind(source.meta["val"]) for source in node.all_input_nodes if isinstance(source.meta.get("val"), Tensor)}
        if _kind(value) == "number" and _name(node) in _MOVES:
            return
        if _kind(value) != "number" and "number" not in kinds:
            return  # of masks and scores
        if _kind(value) == "mask" and kinds == {"number"}:
            return  # a comparison
        if _name(node) in {"cumsum", "_to_copy"} and kinds == {"mask"}:
            return  # counts of a mask's entries, which grow no faster than positions
        if _name(node) in {"index", "where"} and kinds <= {"mask", "number"}:
            return  # entries of a mask, or a choice by one
    _refuse(node)


def _refuse(node: Node) -> NoReturn:
    raise ModelError(
        "a mask of attention is made in a way that does not tell how far it reaches",
        where=node.name,
        expected="positions that are added, subtracted and compared",
        got=str(node.target),
        fix="choose a model of one of the families in docs/models.md",
    )


def _kind(value: Tensor) -> str:
    if value.is_floating_point():
        return "score"
    return "mask" if value.dtype == torch.bool else "number"


def _name(node: Node) -> str:
    return str(node.target).removeprefix("aten.").split(".")[0]


def _numbers(node: Node) -> float:
    """The sum of the numbers among the node's arguments."""
    value = node.meta.get("val")
    if isinstance(value, Tensor) and _kind(value) == "score" and _name(node) in _ON_SCORES:
        return 0.0
    found: list[float] = []
    _collect((node.args, tuple(node.kwargs.values())), found)
    return sum(found)


def _collect(argument: object, found: list[float]) -> None:
    if isinstance(argument, (tuple, list)):
        for part in argument:
            _collect(part, found)
    elif isinstance(argument, (int, float)) and not isinstance(argument, bool) and abs(argument) < _SENTINEL:
        found.append(math.ceil(abs(argument)))
