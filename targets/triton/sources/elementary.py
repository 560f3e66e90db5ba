"""Elementary functions in f32, of tensors."""

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    """Hyperbolic tangent, to a few units in the last place of 1."""
    # exp of a negative argument cannot overflow
    shrunk = tl.exp(-2.0 * tl.abs(x))
    size = (1.0 - shrunk) / (1.0 + shrunk)
    return tl.where(x < 0, -size, size)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def activated(x, KIND: tl.constexpr):
    """An activation by its name in plans."""
    if KIND == "silu":
        y = x * sigmoid(x)
    elif KIND == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif KIND == "gelu_tanh":
        y = 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    elif KIND == "relu":
        y = tl.maximum(x, 0.0)
    else:
        tl.static_assert(KIND == "relu2")
        clipped = tl.maximum(x, 0.0)
        y = clipped * clipped
    return y
