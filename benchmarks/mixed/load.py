"""Two classes of clients on one server: sessions of short turns that somebody waits for, and long prompts that nobody does."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tokenspeed.runtime.benchmark.exchange import Exchange
from tokenspeed.runtime.benchmark.http_stream import Server

from .asking import ask, close_session, counters, output_of

_FIRST_TOKEN, _LAST_TOKEN = 300, 1000


@dataclass(frozen=True)
class Load:
    """Interactive: `sessions` of `context` tokens each; a turn adds `turn_tokens`, gets `output` tokens, and the next one comes
    `think_seconds` later. Batch: `requests` prompts of `least` to `most` tokens with `batch_output` tokens of answer, at most
    `at_once` at a time. `max_context` is the server's, `vocabulary` the tokens that prompts may have."""

    sessions: int
    context: int
    turn_tokens: int
    output: int
    think_seconds: float
    requests: int
    at_once: int
    least: int
    most: int
    batch_output: int
    max_context: int
    vocabulary: int
    seed: int = 0


@dataclass(frozen=True)
class Urgency:
    """What the classes say of themselves; nothing where requests are all alike."""

    interactive: dict[str, Any] = field(default_factory=dict)
    batch: dict[str, Any] = field(default_factory=dict)


@dataclass
class Seen:
    """`alone`: turns before the batch came; `interactive`: turns that began while it ran. `used`: by how much the server's totals
    grew in `seconds`, from the batch's begin to its end."""

    alone: list[Exchange] = field(default_factory=list)
    interactive: list[Exchange] = field(default_factory=list)
    batch: list[Exchange] = field(default_factory=list)
    seconds: float = 0.0
    used: dict[str, float] = field(default_factory=dict)


async def run_load(server: Server, load: Load, urgency: Urgency, seconds: float) -> Seen:
    """Sessions come first and have two turns each without the batch, the first of which fills their cache and is not counted.
    The batch ends with its last request, or after `seconds`."""
    seen, over, batch_runs = Seen(), asyncio.Event(), asyncio.Event()
    chosen = random.Random(f"{load.seed} batch")
    prompts = [_tokens(chosen, load, length) for length in batch_lengths(load)]  # now, as it takes long enough to be seen
    warm = asyncio.Barrier(load.sessions + 1)
    async with asyncio.TaskGroup() as tasks:
        for number in range(load.sessions):
            tasks.create_task(_session(server, load, urgency, number, seen, warm, batch_runs, over))
        await warm.wait()
        before, start = await counters(server), time.perf_counter()
        batch_runs.set()
        try:
            async with asyncio.timeout(seconds):
                await _batch(server, load, urgency, seen, iter(prompts))
        except TimeoutError:
            seen.batch.append(Exchange(error=f"the batch did not end within {seconds:g} s"))
        seen.seconds = time.perf_counter() - start
        over.set()
        after = await counters(server)
    seen.used = {name: after[name] - before.get(name, 0.0) for name in after}
    return seen


async def _session(
    server: Server,
    load: Load,
    urgency: Urgency,
    number: int,
    seen: Seen,
    warm: asyncio.Barrier,
    batch_runs: asyncio.Event,
    over: asyncio.Event,
) -> None:
    chosen, life = random.Random(f"{load.seed} session {number}"), 0
    prompt = _tokens(chosen, load, load.context)
    fields = urgency.interactive | {"session_id": f"interactive-{number}-{life}"}
    for turn in range(2):
        reply = await ask(server, prompt, load.output, fields)
        prompt = [*prompt, *output_of(reply), *_tokens(chosen, load, load.turn_tokens)]
        if turn:
            seen.alone.append(reply)
    await warm.wait()
    await batch_runs.wait()
    await asyncio.sleep(load.think_seconds * number / load.sessions)
    while not over.is_set():
        if len(prompt) + load.output >= load.max_context:
            await close_session(server, fields["session_id"])
            life += 1
            prompt, fields = _tokens(chosen, load, load.context), fields | {"session_id": f"interactive-{number}-{life}"}
        reply = await ask(server, prompt, load.output, fields)
        seen.interactive.append(reply)
        prompt = [*prompt, *output_of(reply), *_tokens(chosen, load, load.turn_tokens)]
        await asyncio.sleep(load.think_seconds)


def batch_lengths(load: Load) -> list[int]:
    """Tokens of the batch's prompts, in order."""
    chosen = random.Random(f"{load.seed} lengths")
    return [chosen.randint(load.least, load.most) for _ in range(load.requests)]


async def _batch(server: Server, load: Load, urgency: Urgency, seen: Seen, prompts: Iterator[list[int]]) -> None:
    async def worker() -> None:
        for prompt in prompts:
            seen.batch.append(await ask(server, prompt, load.batch_output, urgency.batch))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(load.at_once):
            tasks.create_task(worker())


def _tokens(chosen: random.Random, load: Load, count: int) -> list[int]:
    return chosen.choices(range(min(_FIRST_TOKEN, load.vocabulary // 2), min(_LAST_TOKEN, load.vocabulary)), k=count)
