"""Generation without HTTP: one prompt, or a conversation, on the terminal; same engine and same code path as the server."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing, closing, suppress
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from ...plans.errors import TokenspeedError, UsageError
from .api_error import ApiError
from .choices import make_choices
from .generation import Generation
from .prompts import Prompt, chat_prompt, completion_prompts
from .request_types import GenerationRequest
from .service import Service
from .turn import Turn


class GenerationError(TokenspeedError):
    """The prompt was refused or the engine failed on it."""


@dataclass(frozen=True)
class Completed:
    """Seconds are from submission; `text` is all of the generated text."""

    text: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    finish_reason: str
    first_token_seconds: float
    total_seconds: float

    def to_json(self, **more: object) -> str:
        return msgspec.json.encode(asdict(self) | more).decode()

    def summary(self) -> str:
        decoded, seconds = self.completion_tokens - 1, self.total_seconds - self.first_token_seconds
        rate = f", then {decoded / seconds:.1f} tokens/s" if decoded > 0 and seconds > 0 else ""
        return (
            f"{self.prompt_tokens} prompt tokens ({self.cached_tokens} cached), {self.completion_tokens} generated "
            f"({self.finish_reason}); first token after {self.first_token_seconds:.3f} s{rate}"
        )


@dataclass(frozen=True)
class TerminalOptions:
    """`max_tokens` None: as many as the context holds. With `as_json` no text is printed while it is generated."""

    max_tokens: int | None
    temperature: float
    seed: int | None
    as_json: bool = False


async def complete_text(service: Service, text: str, options: TerminalOptions) -> Completed:
    """Complete `text`, printing as it comes. Raises GenerationError."""
    try:
        [prompt] = await completion_prompts(service.model, text)
        return await _generate(service, prompt, options)
    except ApiError as error:
        raise GenerationError(error.message) from None


async def converse(service: Service, options: TerminalOptions) -> None:
    """A turn for each line of standard input, until it ends. Raises UsageError for models without a chat template."""
    if service.model.chat_template is None:
        raise UsageError("this model has no chat template", where="--chat", fix="use --prompt TEXT")
    interactive = sys.stdin.isatty()
    messages: list[dict[str, Any]] = []
    if interactive:
        print("One message a line; Ctrl-D ends.", file=sys.stderr)
    async with aclosing(_lines(interactive)) as lines:
        async for line in lines:
            messages.append({"role": "user", "content": line})
            try:
                completed = await _generate(service, await chat_prompt(service.model, messages, scope=""), options)
            except ApiError as error:
                raise GenerationError(error.message) from None
            messages.append({"role": "assistant", "content": completed.text})
            if options.as_json:
                print(completed.to_json(), flush=True)
            else:
                print(completed.summary(), file=sys.stderr)


async def _generate(service: Service, prompt: Prompt, options: TerminalOptions) -> Completed:
    request = GenerationRequest(temperature=options.temperature, seed=options.seed)
    [choice] = make_choices(
        request, service.model, [prompt], uuid.uuid4().hex, Turn(), max_tokens=options.max_tokens, logprobs=None
    )
    start = time.monotonic()
    first_token, finish_reason, text = None, "", []
    with closing(service.engine.open([choice.submit])) as stream:
        generation = Generation(stream, [choice], service.metrics, start)
        async with aclosing(generation.deltas()) as deltas:
            async for _, delta in deltas:
                first_token = first_token or time.monotonic()
                finish_reason = delta.finish_reason or ""
                text.append(delta.text)
                if not options.as_json:
                    print(delta.text, end="", flush=True)
    if not options.as_json:
        print(flush=True)
    end = time.monotonic()
    return Completed(
        text="".join(text),
        prompt_tokens=len(prompt.tokens),
        cached_tokens=choice.cached_tokens,
        completion_tokens=choice.completion_tokens,
        finish_reason=finish_reason,
        first_token_seconds=(first_token or end) - start,
        total_seconds=end - start,
    )


async def _lines(interactive: bool) -> AsyncGenerator[str, None]:
    """Lines of standard input that are not blank. Read in a daemon thread: a blocked read must not hold up the exit."""
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[str]()

    def read() -> None:
        line = "\n"
        while line:
            line = sys.stdin.readline()
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(queue.put_nowait, line)

    threading.Thread(target=read, name="standard input", daemon=True).start()
    while True:
        if interactive:
            print("> ", end="", file=sys.stderr, flush=True)
        line = await queue.get()
        if not line:
            return
        if line.strip():
            yield line.rstrip("\r\n")
