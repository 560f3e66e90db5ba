"""Operations that only move elements: reshaping, transposing, cutting, joining."""

from __future__ import annotations

from math import prod

from .call import Call, Operand, Shape, is_tokens

END = 2**62
"""Ends of slices from here on mean the end of the dimension."""


def view(call: Call) -> int | None:
    """Row-major order is kept, so tokens stay tokens when as many elements lie before and behind them as did."""
    x = call.operand("self")
    if x.axis is None:
        return None
    dynamic = [at for at, size in enumerate(call.result) if size is None]
    call.require(len(dynamic) == 1, "splits or joins tokens")
    after = dynamic[0]
    call.require(_around(x.shape, x.axis) == _around(call.result, after), "splits or joins tokens")
    return after


def _around(shape: Shape, axis: int) -> tuple[int, int]:
    return prod(size or 0 for size in shape[:axis]), prod(size or 0 for size in shape[axis + 1 :])


def unsqueeze(call: Call) -> int | None:
    x = call.operand("self")
    place = call.integer("dim") % (x.rank + 1)
    return None if x.axis is None else x.axis + (place <= x.axis)


def squeeze(call: Call) -> int | None:
    x = call.operand("self")
    if x.axis is None:
        return None
    given = call.dimensions("dim", x.rank) if "dim" in call.arguments else set(range(x.rank))
    gone = [at for at in given if x.shape[at] == 1]
    return x.axis - sum(at < x.axis for at in gone)


def transpose(call: Call) -> int | None:
    x = call.operand("self")
    if x.axis is None:
        return None
    one, other = call.dimension("dim0", x.rank), call.dimension("dim1", x.rank)
    return {one: other, other: one}.get(x.axis, x.axis)


def turn(call: Call) -> int | None:
    """t: the transpose of a matrix."""
    x = call.operand("self")
    return None if x.axis is None else x.rank - 1 - x.axis


def permute(call: Call) -> int | None:
    x = call.operand("self")
    return None if x.axis is None else [item % x.rank for item in call.arguments["dims"]].index(x.axis)


def expand(call: Call) -> int | None:
    """Repeats dimensions of one; what has no tokens may be repeated for each token."""
    x = call.operand("self")
    added = len(call.result) - x.rank
    if x.axis is not None:
        return x.axis + added
    dynamic = [at for at, size in enumerate(call.result) if size is None]
    if not dynamic:
        return None
    (place,) = dynamic if len(dynamic) == 1 else call.refuse("repeats over tokens twice")
    call.require(place < added or x.shape[place - added] == 1, "repeats over tokens what is no single row")
    call.require(is_tokens(call.arguments["size"][place]), "repeats over another number than tokens")
    return place


def repeat(call: Call) -> int | None:
    x = call.operand("self")
    repeats = call.arguments["repeats"]
    call.without_sizes()
    if x.axis is None:
        return None
    axis = x.axis + len(repeats) - x.rank
    call.require(repeats[axis] == 1, "repeats tokens")
    return axis


def repeat_interleave(call: Call) -> int | None:
    x = call.operand("self")
    call.without_sizes()
    if x.axis is None:
        return None
    call.require(call.arguments.get("dim") is not None, "repeats tokens")
    call.require(call.dimension("dim", x.rank) != x.axis, "repeats tokens")
    return x.axis


def select(call: Call) -> int | None:
    x = call.operand("self")
    call.integer("index")
    if x.axis is None:
        return None
    place = call.dimension("dim", x.rank)
    call.require(place != x.axis, "picks one token")
    return x.axis - (place < x.axis)


def cut(call: Call) -> int | None:
    """slice: of tokens only all of them."""
    x = call.operand("self")
    if x.axis is None:
        call.without_sizes()
        return None
    start, end, step = (call.arguments.get(name) for name in ("start", "end", "step"))
    if call.dimension("dim", x.rank) == x.axis:
        whole = end is None or is_tokens(end) or (isinstance(end, int) and end >= END)
        call.require(start in {None, 0} and whole and step in {None, 1}, "cuts tokens off")
    else:
        call.without_sizes()
    return x.axis


def split(call: Call) -> int | None:
    """split, split_with_sizes, chunk, tensor_split."""
    x = call.operand("self")
    call.without_sizes()
    if x.axis is None:
        return None
    call.require(call.dimension("dim", x.rank) != x.axis, "splits tokens apart")
    return x.axis


def unbind(call: Call) -> int | None:
    x = call.operand("self")
    if x.axis is None:
        return None
    place = call.dimension("dim", x.rank)
    call.require(place != x.axis, "splits tokens apart")
    return x.axis - (place < x.axis)


def cat(call: Call) -> int | None:
    axis = _one_axis(call, call.operands())
    if axis is None:
        return None
    call.require(call.dimension("dim", len(call.result)) != axis, "puts tokens behind one another")
    return axis


def stack(call: Call) -> int | None:
    axis = _one_axis(call, call.operands())
    if axis is None:
        return None
    return axis + (call.dimension("dim", len(call.result)) <= axis)


def _one_axis(call: Call, operands: list[Operand]) -> int | None:
    axes = {operand.axis for operand in operands}
    call.require(len(axes) == 1, "joins tokens and something of another length")
    return axes.pop()


def pad(call: Call) -> int | None:
    """constant_pad_nd: `pad` has two numbers for each dimension, the last dimension first."""
    x = call.operand("self")
    call.without_sizes()
    if x.axis is None:
        return None
    before, after = ([*call.arguments["pad"][2 * (x.rank - 1 - x.axis) :], 0, 0])[:2]
    call.require(before == after == 0, "adds tokens")
    return x.axis


def triangle(call: Call) -> int | None:
    """tril, triu: of each matrix of the last two dimensions."""
    x = call.operand("self")
    call.require(x.axis is None or x.axis < x.rank - 2, "compares token numbers")
    return x.axis
