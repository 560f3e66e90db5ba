"""Which rule says where the tokens of an operation's result are. An operation without a rule is refused."""

from __future__ import annotations

from collections.abc import Callable

from . import factories, indexing, products, reductions, views
from .call import Call, MixesTokens
from .pointwise import POINTWISE, pointwise

Rule = Callable[[Call], int | None]

RULES: dict[str, Rule] = {
    **dict.fromkeys(POINTWISE, pointwise),
    **dict.fromkeys(reductions.REDUCTIONS, reductions.reduction),
    **dict.fromkeys(reductions.ALONG_ONE, reductions.along_one),
    **dict.fromkeys(reductions.ALONG_SEVERAL, reductions.along_several),
    **dict.fromkeys(factories.LIKE, factories.like),
    **dict.fromkeys(factories.SIZED, factories.sized),
    **dict.fromkeys(factories.CONSTANT, factories.constant),
    **dict.fromkeys(("layer_norm", "native_layer_norm", "rms_norm"), reductions.layer_norm),
    **dict.fromkeys(("conv1d", "convolution", "group_norm"), reductions.batched),
    **dict.fromkeys(("bmm", "matmul", "mm"), products.matmul),
    **dict.fromkeys(("_unsafe_view", "reshape", "view"), views.view),
    **dict.fromkeys(("chunk", "split", "split_with_sizes", "tensor_split"), views.split),
    **dict.fromkeys(("gather", "scatter", "scatter_add", "scatter_reduce"), indexing.gather),
    **dict.fromkeys(("tril", "triu"), views.triangle),
    "addmm": products.addmm,
    "baddbmm": products.baddbmm,
    "cat": views.cat,
    "constant_pad_nd": views.pad,
    "embedding": indexing.embedding,
    "expand": views.expand,
    "index": indexing.index,
    "index_select": indexing.index_select,
    "linear": products.linear,
    "permute": views.permute,
    "repeat": views.repeat,
    "repeat_interleave": views.repeat_interleave,
    "select": views.select,
    "slice": views.cut,
    "squeeze": views.squeeze,
    "stack": views.stack,
    "t": views.turn,
    "transpose": views.transpose,
    "unbind": views.unbind,
    "unsqueeze": views.unsqueeze,
}

_WHOLE_SEQUENCES = {
    "scaled_dot_product_attention": "is attention that does not go through transformers' attention interface",
    "nonzero": "gives a result whose size depends on the data",
    "unique": "gives a result whose size depends on the data",
    "masked_select": "gives a result whose size depends on the data",
    "bincount": "gives a result whose size depends on the data",
}


def result_axis(call: Call) -> int | None:
    """The dimension of the operation's result that is tokens, None if the result does not depend on tokens.

    Raises MixesTokens if the operation is not row by row, or not known to be.
    """
    rule = RULES.get(call.name)
    if rule is None:
        call.refuse(_WHOLE_SEQUENCES.get(call.name, "is not known to work token by token"))
    axis = rule(call)
    dynamic = [at for at, size in enumerate(call.result) if size is None]
    if dynamic != ([] if axis is None else [axis]):
        raise MixesTokens(f"{call.target} gives a result with tokens in dimensions {dynamic}, expected {axis}")
    return axis
