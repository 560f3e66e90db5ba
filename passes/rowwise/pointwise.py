"""Operations that give each element from the elements at its place."""

from __future__ import annotations

from .call import Call

_NAMES = """
_to_copy abs acos acosh add addcdiv addcmul asin asinh atan atan2 atanh bitwise_and bitwise_not bitwise_or bitwise_xor ceil
clamp clamp_max clamp_min clone copysign cos cosh div elu eq erf erfc exp exp2 expm1 floor floor_divide fmod ge gelu gt
hardsigmoid hardswish hardtanh isfinite isinf isnan le leaky_relu lerp log log10 log1p log2 log_sigmoid_forward logical_and
logical_not logical_or logical_xor logit lt masked_fill maximum minimum mish mul nan_to_num ne neg pow reciprocal relu
remainder round rsqrt rsub selu sgn sigmoid sign silu sin sinh softplus special_expit sqrt square sub tan tanh threshold
trunc type_as where xlogy
"""
POINTWISE = tuple(_NAMES.split())


def pointwise(call: Call) -> int | None:
    """Tokens must meet tokens: counted from the last dimension, all operands have them at one place."""
    call.without_sizes()
    operands = call.operands()
    places = {operand.rank - operand.axis for operand in operands if operand.axis is not None}
    call.require(len(places) <= 1, "combines every token with every token")
    if not places:
        return None
    (place,) = places
    for operand in operands:
        if operand.axis is None and operand.rank >= place:
            call.require(operand.shape[-place] == 1, "adds up tokens and something of another length")
    return len(call.result) - place
