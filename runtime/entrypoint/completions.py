"""POST /v1/chat/completions and /v1/completions."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack, aclosing
from functools import partial

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from .access import Caller
from .answers import AnswerFormat, Json
from .api_error import ApiError
from .cache_control import longest, take_marks
from .chat_answer import ChatAnswer
from .choice import Choice, Delta
from .choices import make_choices
from .completion_answer import CompletionAnswer
from .decoding import decode, read_body
from .generation import Generation
from .prompts import chat_prompt, completion_prompts
from .refusals import refuse_unsupported
from .request_types import ChatRequest, CompletionRequest, GenerationRequest
from .service import Service
from .streaming import DONE, EventStream, event, unless_disconnected
from .tool_formats.answer_parts import joined_calls
from .tool_reading import tool_reading
from .turn import turn_of

_log = logging.getLogger("tokenspeed.entrypoint")
_COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions


async def chat_completions(service: Service, request: Request, caller: Caller) -> ASGIApp:
    arrival = time.monotonic()
    body = decode(await read_body(request, service.body_limit), ChatRequest)
    service.check_model(body.model)
    refuse_unsupported(body)
    with ExitStack() as resources:
        resources.enter_context(service.answering())
        messages, of_messages = take_marks(body.messages, "messages")
        tools, of_tools = take_marks(body.tools, "tools")
        turn = turn_of(body, request.headers, caller, service.tiers, arrival, longest(of_messages, of_tools))
        prompt = await chat_prompt(
            service.model,
            messages,
            tools=None if body.tool_choice == "none" else tools,
            add_generation_prompt=body.add_generation_prompt is not False,
            arguments=body.chat_template_kwargs,
            scope=turn.salt,
            given=service.given_calls,
        )
        reading = tool_reading(service.model, body, tools, prompt, partial(service.given_calls.remember, turn.salt))
        request_id = f"chatcmpl-{uuid.uuid4().hex}"
        max_tokens = body.max_completion_tokens or body.max_tokens
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        choices = make_choices(
            body, service.model, [prompt], request_id, turn, max_tokens=max_tokens, logprobs=logprobs, reading=reading
        )
        answer = ChatAnswer(
            request_id,
            service.model.name,
            service.model.tokenizer,
            [prompt],
            token_ids=bool(body.return_token_ids),
            service_tier=turn.service_tier,
        )
        return await _answer(service, request, body, choices, answer, arrival, resources)


async def completions(service: Service, request: Request, caller: Caller) -> ASGIApp:
    arrival = time.monotonic()
    body = decode(await read_body(request, service.body_limit), CompletionRequest)
    service.check_model(body.model)
    refuse_unsupported(body)
    with ExitStack() as resources:
        resources.enter_context(service.answering())
        turn = turn_of(body, request.headers, caller, service.tiers, arrival)
        prompts = await completion_prompts(service.model, body.prompt, with_text=bool(body.echo), scope=turn.salt)
        request_id = f"cmpl-{uuid.uuid4().hex}"
        max_tokens = body.max_tokens or _COMPLETION_TOKENS
        choices = make_choices(body, service.model, prompts, request_id, turn, max_tokens=max_tokens, logprobs=body.logprobs)
        answer = CompletionAnswer(
            request_id,
            service.model.name,
            service.model.tokenizer,
            prompts,
            token_ids=bool(body.return_token_ids),
            service_tier=turn.service_tier,
            echo=bool(body.echo),
        )
        return await _answer(service, request, body, choices, answer, arrival, resources)


async def _answer(
    service: Service,
    request: Request,
    body: GenerationRequest,
    choices: Sequence[Choice],
    answer: AnswerFormat,
    arrival: float,
    resources: ExitStack,
) -> ASGIApp:
    """Submit, and answer whole or as a stream; the status is settled only once the engine has taken the request."""
    stream = service.engine.open([choice.submit for choice in choices])
    resources.callback(stream.close)
    await stream.accepted()
    generation = Generation(stream, choices, service.metrics, arrival)
    if body.stream:
        include_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        return EventStream(_events(generation, choices, answer, include_usage), resources.pop_all())
    content = await unless_disconnected(request.receive, _whole(generation, choices, answer))
    return Response(msgspec.json.encode(content), media_type="application/json")


async def _events(
    generation: Generation, choices: Sequence[Choice], answer: AnswerFormat, include_usage: bool
) -> AsyncGenerator[bytes, None]:
    """The stream's events. A failure is the last event before the end mark, so that every stream ends alike."""
    try:
        for choice in choices:
            if (chunk := answer.start(choice)) is not None:
                yield event(chunk)
        async with aclosing(generation.deltas()) as deltas:
            async for choice, delta in deltas:
                if (chunk := answer.chunk(choice, delta)) is not None:
                    yield event(chunk)
        if include_usage:
            yield event(answer.usage_chunk(choices))
    except ApiError as error:
        yield event(error.to_dict())
    except Exception:  # headers are out: only an event can still tell the client
        _log.exception("internal error while streaming an answer")
        yield event(ApiError(500, "internal error").to_dict())
    yield DONE


async def _whole(generation: Generation, choices: Sequence[Choice], answer: AnswerFormat) -> Json:
    gathered: dict[int, list[Delta]] = {choice.index: [] for choice in choices}
    async with aclosing(generation.deltas()) as deltas:
        async for choice, delta in deltas:
            gathered[choice.index].append(delta)
    return answer.whole([(choice, joined(gathered[choice.index])) for choice in choices])


def joined(deltas: Sequence[Delta]) -> Delta:
    """What all parts of an answer say together."""
    return Delta(
        text="".join(delta.text for delta in deltas),
        reasoning="".join(delta.reasoning for delta in deltas),
        calls=joined_calls(call for delta in deltas for call in delta.calls),
        tokens=tuple(token for delta in deltas for token in delta.tokens),
        scored=tuple(scored for delta in deltas for scored in delta.scored),
        finish_reason=deltas[-1].finish_reason,
        stop_reason=deltas[-1].stop_reason,
    )
