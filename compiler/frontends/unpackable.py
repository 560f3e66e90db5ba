"""Model types that cannot run on packed rows of one token each: refused by name, before anything is traced."""

from __future__ import annotations

from ...plans.errors import ModelError

_CODEBOOKS = "each step takes and gives a code of each of several codebooks, not one token"
_ASSISTANT = "it drafts for another model, and takes that model's hidden states, keys and values instead of tokens"
_UNPACKABLE = {
    "blt": "bytes are joined into patches of lengths that a second model finds, and attend across patches",
    "cpmant": "a prompt of its own goes before each text, and scores get a bias of each head by buckets of distances",
    "deepseek_v4": "stretches of keys are compressed into one, which later tokens see in their place",
    "gemma4_assistant": _ASSISTANT,
    "gemma4_unified_assistant": _ASSISTANT,
    "musicgen": _CODEBOOKS,
    "musicgen_melody": _CODEBOOKS,
    "prophetnet": "logits are of streams that attend to themselves beside the main one, with a bias by buckets of distances",
    "reformer": "tokens are sorted into chunks by random hashes, and attend within them",
}
"""By model type, what it does instead."""


def refuse_unpackable(model_type: str) -> None:
    """Raises ModelError if models of this type compute something else than logits of each token from those before it."""
    why = _UNPACKABLE.get(model_type)
    if why is None:
        return
    raise ModelError(
        f"model type {model_type!r} cannot run on packed rows of tokens",
        where="config.json, field model_type",
        expected="a model that gives logits for each token, from the tokens before it alone",
        got=why,
        fix="choose one of the model types that docs/models.md lists",
    )
