"""A request's prompts times its `n`: the sequences the engine is asked for."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ..protocol import Submit, packed
from .api_error import invalid
from .choice import Choice
from .prompts import Prompt
from .request_types import ChatRequest, GenerationRequest
from .sampling import choice_seed, sampling_parameters
from .served_model import ServedModel
from .tool_calls import ToolCallWatch
from .tool_reading import ToolReading
from .turn import Turn

_MOST_CHOICES = 128


def make_choices(
    request: GenerationRequest,
    model: ServedModel,
    prompts: Sequence[Prompt],
    request_id: str,
    turn: Turn,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    reading: ToolReading | None = None,
) -> list[Choice]:
    """Choice i is sequence `{request_id}-{i}`, all of prompt 0 first; all are of one turn. With `reading` their answers are read
    for tool calls. Raises ApiError (400)."""
    count = request.n or 1
    if count * len(prompts) > _MOST_CHOICES:
        raise invalid("n", f"`n` times the number of prompts is {count * len(prompts)}; at most {_MOST_CHOICES} are served")
    stops = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    choices = []
    for number, prompt in enumerate(prompts):
        sampling = sampling_parameters(request, model, len(prompt.tokens), max_tokens=max_tokens, logprobs=logprobs)
        tokens = packed(prompt.tokens)
        for choice in range(count):
            index = number * count + choice
            seeded = msgspec.structs.replace(sampling, seed=choice_seed(sampling.seed, choice))
            submit = Submit(
                f"{request_id}-{index}",
                tokens,
                seeded,
                priority=turn.priority,
                salt=turn.salt,
                session_id=turn.session_id,
                tenant=turn.tenant,
                deadline_seconds=turn.deadline_seconds(),
                inter_token_seconds=turn.inter_token_seconds,
                retention_seconds=turn.retention_seconds,
            )
            skip = request.skip_special_tokens is not False
            watch = ToolCallWatch(model.tool_call_tokens, tools=isinstance(request, ChatRequest) and bool(request.tools))
            choices.append(
                Choice(
                    index,
                    submit,
                    model.tokenizer,
                    stops=stops,
                    prompt=number,
                    skip_special_tokens=skip,
                    tool_calls=watch,
                    reader=reading.reader() if reading else None,
                    shown=reading.shown if reading else frozenset(),
                )
            )
    return choices
