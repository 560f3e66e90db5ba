"""Which fields beyond OpenAI's a server takes. Told by who it says serves its models, or named."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerKind:
    """`lengths`: `ignore_eos` and `min_tokens`. `token_prompts`: lists of tokens as prompts of completions. `token_ids`: answers
    tell their tokens (`return_token_ids`). `priority` and `salt` (`cache_salt`): the fields. `sessions`: `session_id`, and hints
    between turns (docs/serving.md)."""

    name: str
    lengths: bool = True
    token_prompts: bool = True
    token_ids: bool = False
    priority: bool = False
    salt: bool = False
    sessions: bool = False


KINDS = (
    ServerKind("tokenspeed", token_ids=True, priority=True, salt=True, sessions=True),
    ServerKind("vllm", token_ids=True, priority=True, salt=True),
    ServerKind("sglang", priority=True),
    ServerKind("llamacpp"),
    ServerKind("openai", lengths=False, token_prompts=False),
)
NAMES = tuple(kind.name for kind in KINDS)


def kind_of(owner: str) -> ServerKind:
    """By `owned_by` of a model; a server that is not known gets OpenAI's own fields alone."""
    return next((kind for kind in KINDS if kind.name == owner), KINDS[-1])
