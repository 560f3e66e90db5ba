"""Operations along dimensions: reductions, normalisations, sorting. Tokens must not be among those dimensions."""

from __future__ import annotations

from .call import Call
from .pointwise import pointwise

_REDUCED = """
all amax amin any argmax argmin linalg_vector_norm logsumexp max mean median min norm prod std std_mean sum var var_mean
"""
_ALONG = """
_log_softmax _softmax argsort cumprod cumsum glu log_softmax logcumsumexp softmax sort topk
"""
REDUCTIONS, ALONG_ONE, ALONG_SEVERAL = tuple(_REDUCED.split()), tuple(_ALONG.split()), ("flip", "roll")


def reduction(call: Call) -> int | None:
    if "other" in call.arguments:
        return pointwise(call)  # the greater or smaller of two
    x = call.operand("self")
    call.without_sizes()
    if x.axis is None:
        return None
    dimensions = call.dimensions("dim", x.rank) if "dim" in call.arguments else set(range(x.rank))
    call.require(x.axis not in dimensions, "reduces over tokens")
    if call.arguments.get("keepdim"):
        return x.axis
    return x.axis - sum(dimension < x.axis for dimension in dimensions)


def along_one(call: Call) -> int | None:
    x = call.operand("self")
    call.without_sizes()
    if x.axis is None:
        return None
    call.require(call.dimension("dim", x.rank) != x.axis, "works along tokens")
    return x.axis


def along_several(call: Call) -> int | None:
    x = call.operand("self")
    call.without_sizes()
    if x.axis is None:
        return None
    call.require(x.axis not in call.dimensions("dims", x.rank), "works along tokens")
    return x.axis


def layer_norm(call: Call) -> int | None:
    """layer_norm, native_layer_norm, rms_norm: over the trailing dimensions that `normalized_shape` names."""
    x = call.operand("input")
    call.static("weight", "bias")
    call.require(x.axis is None or x.axis < x.rank - len(call.arguments["normalized_shape"]), "normalises over tokens")
    return x.axis


def batched(call: Call) -> int | None:
    """Operations on a batch of samples, the first dimension: group_norm, convolutions. Tokens may be the samples only."""
    x = call.operand("input")
    call.without_sizes()
    call.static("weight", "bias")
    call.require(x.axis in {None, 0}, "mixes neighbouring tokens")
    return x.axis
