"""Requests of random prompts for a load on a server."""

from __future__ import annotations

import random
from dataclasses import dataclass

import msgspec

from .exchange import Api
from .http_stream import Server

# Ids that every vocabulary has, past the special tokens at its start.
_FIRST_TOKEN, _LAST_TOKEN = 300, 1000
_WORDS = ("time", "people", "water", "system", "number", "point", "house", "world", "school", "state", "family", "group")


@dataclass(frozen=True)
class ServeOptions:
    """`rate`: requests per second, arriving at random (Poisson), at most `concurrency` at once; None: a closed loop.

    `request_seconds` and `total_seconds` are time limits. `ignore_eos` sends that extension (vLLM, SGLang, tokenspeed know it).
    """

    server: Server
    model: str | None
    api: Api
    requests: int
    concurrency: int
    prompt_tokens: int
    output_tokens: int
    rate: float | None
    ignore_eos: bool
    request_seconds: float
    total_seconds: float
    seed: int = 0


def request_body(options: ServeOptions, model: str, number: int) -> bytes:
    """A prompt of random tokens (`completions`) or of about as many words (`chat`), other ones for each `number`."""
    chosen = random.Random(f"{options.seed} {number}")
    body: dict[str, object] = {
        "model": model,
        "max_tokens": options.output_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if options.ignore_eos:
        body["ignore_eos"] = True
    if options.api == "chat":
        text = " ".join(chosen.choice(_WORDS) for _ in range(options.prompt_tokens))
        body["messages"] = [{"role": "user", "content": text}]
    else:
        body["prompt"] = [chosen.randrange(_FIRST_TOKEN, _LAST_TOKEN) for _ in range(options.prompt_tokens)]
    return msgspec.json.encode(body)
