"""A request's prompts times its `n`: the sequences the engine is asked for."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ..protocol import Submit
from .access import cache_salt
from .api_error import invalid
from .choice import Choice
from .prompts import Prompt
from .request_types import GenerationRequest
from .sampling import choice_seed, sampling_parameters
from .served_model import ServedModel

_MOST_CHOICES = 128


def make_choices(
    request: GenerationRequest,
    model: ServedModel,
    prompts: Sequence[Prompt],
    request_id: str,
    identity: bytes,
    *,
    max_tokens: int | None,
    logprobs: int | None,
) -> list[Choice]:
    """Choice i is sequence `{request_id}-{i}`, all of prompt 0 first. Raises ApiError (400)."""
    count = request.n or 1
    if count * len(prompts) > _MOST_CHOICES:
        raise invalid("n", f"`n` times the number of prompts is {count * len(prompts)}; at most {_MOST_CHOICES} are served")
    salt = cache_salt(identity, request.cache_salt)
    stops = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    choices = []
    for number, prompt in enumerate(prompts):
        sampling = sampling_parameters(request, model, len(prompt.tokens), max_tokens=max_tokens, logprobs=logprobs)
        for choice in range(count):
            index = number * count + choice
            seeded = msgspec.structs.replace(sampling, seed=choice_seed(sampling.seed, choice))
            submit = Submit(f"{request_id}-{index}", prompt.tokens, seeded, request.priority or 0, salt)
            skip = request.skip_special_tokens is not False
            choices.append(Choice(index, submit, model.tokenizer, stops=stops, prompt=number, skip_special_tokens=skip))
    return choices
