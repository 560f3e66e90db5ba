"""Request fields to the engine's sampling parameters."""

from __future__ import annotations

import hashlib
import secrets

from ...plans.sampling import END_TOKENS
from ..protocol import SamplingParameters
from .api_error import invalid
from .request_types import GenerationRequest
from .served_model import ServedModel

_SEED_MASK = 2**63 - 1


def sampling_parameters(
    request: GenerationRequest, model: ServedModel, prompt_tokens: int, *, max_tokens: int | None, logprobs: int | None
) -> SamplingParameters:
    """`max_tokens` None means as many as the context holds; more than it holds is cut to that. Raises ApiError (400).

    A request without a seed gets one drawn at random, so that its choices can still differ by a rule.
    """
    room = model.max_context - prompt_tokens
    limit = room if max_tokens is None else min(max_tokens, room)
    min_tokens = request.min_tokens or 0
    if min_tokens > limit:
        raise invalid("min_tokens", f"`min_tokens` is {min_tokens}, but at most {limit} tokens can be generated")
    for name, tokens in (("logit_bias", request.logit_bias), ("stop_token_ids", request.stop_token_ids)):
        if any(token >= model.vocabulary for token in tokens or ()):
            raise invalid(name, f"`{name}` holds tokens outside the vocabulary of {model.vocabulary}")
    if len({*model.end_tokens, *(request.stop_token_ids or ())}) > END_TOKENS:
        own = len(set(model.end_tokens))
        raise invalid("stop_token_ids", f"at most {END_TOKENS} tokens can end a sequence, {own} of them are the model's own")
    return SamplingParameters(
        max_tokens=limit,
        temperature=_or(request.temperature, 1.0),
        top_k=max(0, request.top_k or 0),
        top_p=_or(request.top_p, 1.0),
        min_p=_or(request.min_p, 0.0),
        repetition_penalty=_or(request.repetition_penalty, 1.0),
        presence_penalty=_or(request.presence_penalty, 0.0),
        frequency_penalty=_or(request.frequency_penalty, 0.0),
        seed=secrets.randbits(63) if request.seed is None else request.seed & _SEED_MASK,
        logit_bias=request.logit_bias or {},
        stop_tokens=tuple(request.stop_token_ids or ()),
        min_tokens=min_tokens,
        ignore_eos=bool(request.ignore_eos),
        logprobs=logprobs,
    )


def choice_seed(seed: int, choice: int) -> int:
    """The seed of one of `n` choices: the first is what `n` = 1 would have given."""
    if choice == 0:
        return seed
    digest = hashlib.sha256(f"{seed}:{choice}".encode()).digest()
    return int.from_bytes(digest[:8], "little") & _SEED_MASK


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
