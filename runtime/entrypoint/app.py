"""The HTTP API: routes, who may use them, and errors in OpenAI's form."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from .access import ANYONE, Caller, cache_salt
from .api_error import ApiError, invalid
from .cache_control import take_marks
from .completions import chat_completions, completions
from .decoding import decode, read_body
from .prompts import chat_prompt, completion_prompts
from .request_types import DetokenizeRequest, TokenizeRequest
from .service import Service
from .sessions import close_session, end_turn

Handler = Callable[[Service, Request, Caller], Awaitable[ASGIApp]]


def make_app(service: Service) -> Starlette:
    """The ASGI application. Health, readiness and version are open; everything else needs an API key if any is set."""
    routes = [
        _route("/v1/chat/completions", "POST", chat_completions, service),
        _route("/v1/completions", "POST", completions, service),
        _route("/v1/sessions/{session:path}/end_turn", "POST", end_turn, service),
        _route("/v1/sessions/{session:path}", "DELETE", close_session, service),
        _route("/v1/models", "GET", _models, service),
        _route("/v1/models/{name:path}", "GET", _model, service),
        _route("/tokenize", "POST", _tokenize, service),
        _route("/detokenize", "POST", _detokenize, service),
        _route("/metrics", "GET", _metrics, service),
        _route("/health", "GET", _health, service, guarded=False),
        _route("/ready", "GET", _ready, service, guarded=False),
        _route("/version", "GET", _version, service, guarded=False),
    ]
    handlers = {ApiError: _api_error, HTTPException: _http_error, Exception: _internal_error}
    return Starlette(routes=routes, exception_handlers=handlers)


def _route(path: str, method: str, handler: Handler, service: Service, *, guarded: bool = True) -> Route:
    async def endpoint(request: Request) -> ASGIApp:
        headers = request.headers
        caller = service.keys.authenticate(headers.get("authorization"), headers.get("x-api-key")) if guarded else ANYONE
        return await handler(service, request, caller)

    return Route(path, endpoint, methods=[method])


def _json(content: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")


async def _models(service: Service, request: Request, caller: Caller) -> ASGIApp:
    return _json({"object": "list", "data": [_model_card(service)]})


async def _model(service: Service, request: Request, caller: Caller) -> ASGIApp:
    service.check_model(request.path_params["name"])
    return _json(_model_card(service))


def _model_card(service: Service) -> dict[str, object]:
    model = service.model
    card: dict[str, object] = {"id": model.name, "object": "model", "created": model.created, "owned_by": "tokenspeed"}
    parser = model.tool_format.name if model.tool_format else None
    return card | {"max_model_len": model.max_context, "tool_parser": parser}


async def _tokenize(service: Service, request: Request, caller: Caller) -> ASGIApp:
    body = decode(await read_body(request, service.body_limit), TokenizeRequest)
    service.check_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise invalid("prompt", "send one of `prompt` and `messages`")
    if body.messages is not None:
        add_generation_prompt = body.add_generation_prompt is not False
        messages, _ = take_marks(body.messages, "messages")
        tools, _ = take_marks(body.tools, "tools")
        prompt = await chat_prompt(
            service.model,
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            arguments=body.chat_template_kwargs,
            scope=cache_salt(caller.identity, None),
            given=service.given_calls,
        )
    else:
        prompt = (await completion_prompts(service.model, body.prompt or ""))[0]
    return _json({"tokens": prompt.tokens, "count": len(prompt.tokens), "max_model_len": service.model.max_context})


async def _detokenize(service: Service, request: Request, caller: Caller) -> ASGIApp:
    body = decode(await read_body(request, service.body_limit), DetokenizeRequest)
    service.check_model(body.model)
    tokenizer = service.model.tokenizer
    if tokenizer is None:
        raise invalid("tokens", "this plan has no tokenizer")
    return _json({"prompt": tokenizer.decode(body.tokens, skip_special_tokens=False)})


async def _metrics(service: Service, request: Request, caller: Caller) -> ASGIApp:
    return Response(service.metrics.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _health(service: Service, request: Request, caller: Caller) -> ASGIApp:
    failure = service.engine.failure
    if failure is not None:
        return _json({"status": "failed", "reason": failure.message.splitlines()[0]}, 503)
    return _json({"status": "ok"})


async def _ready(service: Service, request: Request, caller: Caller) -> ASGIApp:
    if service.ready:
        return _json({"status": "ready"})
    status = "failed" if service.engine.failure else "draining" if service.draining else "loading"
    return _json({"status": status}, 503)


async def _version(service: Service, request: Request, caller: Caller) -> ASGIApp:
    return _json({"version": service.model.version, "plan_id": service.model.plan_id})


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    content = msgspec.json.encode(error.to_dict())
    return Response(content, error.status, error.headers, media_type="application/json")


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return await _api_error(request, ApiError(error.status_code, message, headers=error.headers))


async def _internal_error(request: Request, error: Exception) -> Response:
    return await _api_error(request, ApiError(500, "internal error"))
