"""Matrix products: tokens may number the rows, the columns or the batch; what is summed over must not be tokens."""

from __future__ import annotations

from .call import Call, Operand


def linear(call: Call) -> int | None:
    x = call.operand("input")
    call.static("weight", "bias")
    call.require(x.axis is None or x.axis < x.rank - 1, "sums over tokens")
    return x.axis


def matmul(call: Call) -> int | None:
    """mm, bmm, matmul."""
    left = call.operand("self")
    right = call.operand("other" if "other" in call.arguments else "mat2")
    return _product(call, left, right, len(call.result))


def addmm(call: Call) -> int | None:
    """self + mat1 @ mat2."""
    found = _product(call, call.operand("mat1"), call.operand("mat2"), 2)
    return _with_term(call, call.operand("self"), found, 2)


def baddbmm(call: Call) -> int | None:
    found = _product(call, call.operand("batch1"), call.operand("batch2"), 3)
    return _with_term(call, call.operand("self"), found, 3)


def _product(call: Call, left: Operand, right: Operand, rank: int) -> int | None:
    if left.axis is None and right.axis is None:
        return None
    call.require(left.rank > 1 and right.rank > 1, "multiplies vectors of tokens")
    places = {
        "left": None if left.axis is None else left.rank - left.axis,
        "right": None if right.axis is None else right.rank - right.axis,
    }
    call.require(places["left"] != 1 and places["right"] != 2, "sums over tokens")
    if places["left"] is not None and places["right"] is not None:
        same_batch = places["left"] == places["right"] and places["left"] > 2
        call.require(same_batch, "multiplies every token with every token")
    place = places["left"] or places["right"]
    assert place is not None
    if place > 2:
        for operand in (left, right):
            if operand.axis is None and operand.rank >= place:
                call.require(operand.shape[-place] == 1, "multiplies tokens and a batch of another length")
    return rank - place


def _with_term(call: Call, term: Operand, axis: int | None, rank: int) -> int | None:
    if term.axis is None:
        short = axis is None or term.rank < rank - axis or term.shape[-(rank - axis)] == 1
        call.require(short, "adds tokens and something of another length")
        return axis
    call.require(axis is not None and term.axis - term.rank == axis - rank, "adds every token to every token")
    return axis
