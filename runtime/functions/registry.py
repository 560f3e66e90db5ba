"""The allow-list itself. A name that is not here cannot be called."""

from __future__ import annotations

from collections.abc import Callable

from ...plans.errors import PlanError
from ...plans.program import FUNCTIONS_VERSION
from ...plans.recurrence_body import RECURRENCE_INPUTS
from .activation import activation, gated_activation
from .adjust_logits import adjust_logits
from .aten import aten_function
from .attention import attention
from .base import Launch, Operands
from .collective import all_gather, all_reduce, reduce_scatter, take_part
from .crossing import receive, send
from .draw_tokens import draw_tokens
from .elementwise import add, copy, mul, scale, softcap
from .exchange_rows import combine, dispatch
from .kv import kv_write, rope_kv_write
from .latent import latent_attention, latent_kv_write
from .layer_norm import layer_norm
from .linear import linear, linear_onednn
from .mixture import moe_experts, moe_route
from .norms import add_rms_norm, rms_norm
from .record_tokens import record_tokens
from .recurrence import recurrence
from .rope import rope, rope_table
from .token_logprobs import token_logprobs
from .tokens import embedding, gather_rows, take_last_tokens

# Checks its operands and gives back a launch bound to them; a launch takes no argument and allocates no activation.
Function = Callable[[Operands], Launch]

_FUNCTIONS: dict[str, Function] = {
    function.__name__: function
    for function in (
        take_last_tokens,
        embedding,
        rope_table,
        rms_norm,
        add_rms_norm,
        layer_norm,
        linear,
        linear_onednn,
        add,
        mul,
        scale,
        copy,
        softcap,
        activation,
        latent_kv_write,
        latent_attention,
        gated_activation,
        moe_route,
        moe_experts,
        rope,
        kv_write,
        rope_kv_write,
        attention,
        gather_rows,
        all_reduce,
        all_gather,
        reduce_scatter,
        take_part,
        dispatch,
        combine,
        send,
        receive,
        recurrence,
        adjust_logits,
        draw_tokens,
        token_logprobs,
        record_tokens,
    )
}

READ_ON_HOST: dict[str, frozenset[str]] = {"recurrence": frozenset(RECURRENCE_INPUTS)}
"""Step inputs that a function reads on the host, by function: also where all its other operands are on a device."""


def lookup(name: str) -> Function:
    """The function of that name. Raises PlanError when the allow-list has none."""
    found = _FUNCTIONS.get(name) or aten_function(name)
    if found is None:
        raise PlanError(
            f"The plan calls a function that this runtime does not have: {name!r}.",
            where="programs",
            expected=f"a function of the allow-list, version {FUNCTIONS_VERSION}: {', '.join(sorted(_FUNCTIONS))}, or aten.*",
            got=name,
            fix="run the plan with the runtime it was compiled for, or compile it again",
        )
    return found
