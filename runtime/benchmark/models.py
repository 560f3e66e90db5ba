"""What an OpenAI-compatible server says of its models."""

from __future__ import annotations

import asyncio

import msgspec

from ...plans.errors import TokenspeedError
from .exchange import shown
from .http_stream import HttpFailed, Server, request


class ServerFailed(TokenspeedError):
    """The server cannot be benchmarked: not reachable, or it names no model."""


class _Meta(msgspec.Struct):
    """What llama.cpp says of a model: `n_ctx` are the tokens that one of its slots holds."""

    n_ctx: int | None = None


class ServedModel(msgspec.Struct):
    """One of `GET /v1/models`. `max_model_len` in tokens, `meta`, and who serves it, are told by some servers."""

    id: str
    owned_by: str = ""
    max_model_len: int | None = None
    meta: _Meta | None = None

    @property
    def max_context(self) -> int | None:
        """Tokens of the longest sequence, where the server tells it."""
        return self.max_model_len or (self.meta.n_ctx if self.meta is not None else None)


class _Models(msgspec.Struct):
    data: list[ServedModel]


async def served_model(server: Server, seconds: float, name: str | None = None) -> ServedModel:
    """The first model, or the one called `name`. A server that does not list a named one is believed to have it.

    Raises ServerFailed.
    """
    try:
        async with asyncio.timeout(seconds), request(server, "GET", "/v1/models") as answer:
            body = await answer.whole()
            if answer.status != 200:
                raise HttpFailed(f"HTTP {answer.status}: {shown(body)}")
            models = msgspec.json.decode(body, type=_Models).data
    except (HttpFailed, TimeoutError, msgspec.DecodeError) as error:
        raise ServerFailed(
            "The server does not tell its models.",
            where=f"{server.host}:{server.port}",
            expected="an answer of GET /v1/models",
            got=str(error) or "no answer in time",
            fix="check --url and --api-key, or name the model with --model",
        ) from None
    if name is not None:
        return next((model for model in models if model.id == name), ServedModel(name))
    if not models:
        raise ServerFailed("The server has no model.", where="/v1/models", fix="name one with --model")
    return models[0]
