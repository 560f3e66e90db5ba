"""Operations that make tensors from nothing but sizes: the same for every token, or the number of the token."""

from __future__ import annotations

from .call import Call, is_symbol, is_tokens

LIKE = ("full_like", "ones_like", "zeros_like")
SIZED = ("full", "new_full", "new_ones", "new_zeros", "ones", "zeros")
CONSTANT = ("arange", "eye", "linspace", "scalar_tensor")


def like(call: Call) -> int | None:
    """full_like, zeros_like, ones_like."""
    call.without_sizes()
    return call.operand("self").axis


def sized(call: Call) -> int | None:
    """full, zeros, ones and their new_ variants."""
    sizes = call.arguments["size"]
    call.require(not is_symbol(call.arguments.get("fill_value")), "computes with the number of tokens")
    places = [at for at, size in enumerate(sizes) if is_symbol(size)]
    call.require(len(places) <= 1 and all(is_tokens(sizes[at]) for at in places), "makes more than one row for each token")
    return places[0] if places else None


def constant(call: Call) -> int | None:
    """Tensors whose size and values are constants: scalar_tensor, eye, linspace, and arange of no tokens."""
    call.without_sizes()
    return None


def counts_tokens(call: Call) -> bool:
    """Whether this is arange(tokens): 0, 1, ... for each token. In a whole sequence that is each token's position."""
    if call.name != "arange" or not is_tokens(call.arguments.get("end")):
        return False
    return call.arguments.get("start", 0) == 0 and call.arguments.get("step", 1) == 1
