"""Model types whose recurrent state is not in transformers' cache: refused by name, before anything is traced."""

from __future__ import annotations

from ...plans.errors import ModelError

_OWN_STATE = {
    "minimax": "lightning attention keeps its state in a cache class of the model's own, and saves its decays as weights",
    "recurrent_gemma": "the recurrent blocks keep their state in attributes of their own modules",
    "rwkv": "the state is a list of tensors that the model itself passes from call to call",
    "xlstm": "the state is in a cache class of the model's own",
}
"""By model type, where the state is."""


def refuse_own_state(model_type: str) -> None:
    """Raises ModelError if models of this type keep recurrent state where it cannot be taken from."""
    why = _OWN_STATE.get(model_type)
    if why is None:
        return
    raise ModelError(
        f"model type {model_type!r} keeps a recurrent state that is not in transformers' cache",
        where="config.json, field model_type",
        expected="recurrent layers that hand their state to transformers' cache, as mamba, lfm2 and qwen3_next do",
        got=why,
        fix="choose one of the model types that docs/models.md lists",
    )
