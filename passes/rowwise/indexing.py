"""Operations that pick elements by index: rows of tables by token, or features of each token."""

from __future__ import annotations

from .call import Call, Operand


def embedding(call: Call) -> int | None:
    call.static("weight")
    return call.operand("indices").axis


def gather(call: Call) -> int | None:
    """gather, scatter, scatter_add, scatter_reduce: each token among its own elements."""
    x = call.operand("self")
    if call.name == "gather" and x.axis is None:
        return _from_a_table(call, x)
    places = {operand.axis for operand in call.operands()}
    call.require(len(places) == 1, "picks from all tokens")
    if x.axis is None:
        return None
    call.require(call.dimension("dim", x.rank) != x.axis, "picks from other tokens")
    return x.axis


def _from_a_table(call: Call, table: Operand) -> int | None:
    """gather from what is the same for every token: each token's own elements, along the dimension that is picked from."""
    index = call.operand("index")
    if index.axis is not None:
        call.require(call.dimension("dim", table.rank) == index.axis, "picks from a table by the number of the token")
    return index.axis


def index_select(call: Call) -> int | None:
    x, index = call.operand("self"), call.operand("index")
    place = call.dimension("dim", x.rank)
    if index.axis is not None:
        call.require(x.axis is None, "picks from all tokens")
        return place
    call.require(x.axis is None or x.axis != place, "picks tokens")
    return x.axis


def index(call: Call) -> int | None:
    """x[..., i, ...] with one tensor of indices: rows of a table by token, or features of each token."""
    x, given = call.operand("self"), call.arguments["indices"]
    used = [(place, item) for place, item in enumerate(given) if isinstance(item, Operand)]
    if x.axis is None and all(item.axis is None for _, item in used):
        return None
    call.require(len(used) == 1, "picks by several indices at once")
    place, picked = used[0]
    if picked.axis is not None:
        call.require(x.axis is None, "picks from all tokens")
        return place + picked.axis
    call.require(x.axis is not None and x.axis != place, "picks tokens")
    assert x.axis is not None
    return x.axis if x.axis < place else x.axis + picked.rank - 1
