"""A trace played to an OpenAI-compatible server over HTTP: sessions of turns, with the clients' own pauses between them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import inf
from urllib.parse import quote

import msgspec

from ..simulation.clients import Agents, Arrival, Arrivals, Clients
from ..simulation.report import SCHEMA, TrafficReport, class_report, classes_by, curve, latencies
from ..simulation.timeline import as_clients_saw_it
from ..simulation.turns import TurnRecord, TurnResult
from ..traffic.contents import Vocabulary
from ..traffic.session import Session, Trace
from .conversation import Answers, Conversation, Fields, TextConversation, TokenConversation
from .environment import environment
from .exchange import Api, Exchange, shown, stream_answer
from .http_stream import HttpFailed, Server, request
from .models import ServedModel
from .server_kinds import ServerKind

_LISTED_ERRORS = 5
_HINT_SECONDS = 10.0
_REFUSALS = (400, 401, 403, 404, 413, 422, 429, 503)


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """`agents`: sessions at a time, each turn its gap after the answer before it; None: turns at the trace's own times, but none
    before the answer to the one before it. `time_scale` stretches gaps and times.

    `text`: prompts as text although tokens could be sent. `hints`: tell a server that takes them why turns ended, and when a
    session does. `session_header` is sent with the session's id, "" for none; so is `fields` in each body.
    `request_seconds` and `total_seconds` are limits.
    """

    server: Server
    kind: ServerKind
    model: ServedModel
    api: Api = "completions"
    agents: int | None = 8
    time_scale: float = 1.0
    priority: int = 0
    text: bool = False
    answers: Answers = "given"
    hints: bool = True
    session_header: str = ""
    fields: Fields = field(default_factory=dict)
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    request_seconds: float = 600.0
    total_seconds: float = 3600.0
    accelerators: int = 1

    @property
    def sends_tokens(self) -> bool:
        return self.api == "completions" and self.kind.token_prompts and not self.text


class ReplayReport(TrafficReport, frozen=True, kw_only=True):
    """A simulation's report, measured, and what went wrong. `traffic.unfinished` turns were under way or still to come when the
    time was up."""

    errors: tuple[str, ...]


def measure_replay(trace: Trace, options: ReplayOptions, url: str, say: Callable[[str], None]) -> ReplayReport:
    """Errors of single turns are counted; a session goes on after one."""
    replay = _Replay(options, trace, say)
    seconds = asyncio.run(replay.run())
    return _report(replay, url, seconds)


class _Replay:
    def __init__(self, options: ReplayOptions, trace: Trace, say: Callable[[str], None]) -> None:
        self.options, self.trace, self._say = options, trace, say
        self.records: list[TurnRecord] = []
        self.errors: dict[str, None] = {}
        self.counted_by_server = True
        self.told_tokens = False
        self._conversations: dict[str, Conversation] = {}
        self._order: dict[str, asyncio.Lock] = {}
        self._start = 0.0

    async def run(self) -> float:
        """Play all of it, or as much as the time allows; the seconds it took."""
        self._start = time.perf_counter()
        try:
            async with asyncio.timeout(self.options.total_seconds):
                await self._play()
        except TimeoutError:
            self._say("the time limit was reached")
        return self._now

    @property
    def answers(self) -> str:
        """Whose answers the prompts held."""
        if self.options.answers == "traced" or not self.options.sends_tokens or self.told_tokens:
            return self.options.answers
        return "traced, as the server does not tell its tokens"

    @property
    def _now(self) -> float:
        return time.perf_counter() - self._start

    async def _play(self) -> None:
        options, sessions = self.options, self.trace.sessions
        clients: Clients = (
            Arrivals(sessions, options.time_scale)
            if options.agents is None
            else Agents(sessions, options.agents, options.time_scale)
        )
        wake, running = asyncio.Event(), 0

        async def one(arrival: Arrival) -> None:
            nonlocal running
            async with self._order.setdefault(arrival.session.session_id, asyncio.Lock()):
                end = await self._turn(arrival.session, arrival.turn)
            clients.ended(arrival.session, arrival.turn, end)
            running -= 1
            wake.set()

        async with asyncio.TaskGroup() as tasks:
            while True:
                wake.clear()
                for arrival in clients.take(self._now):
                    running += 1
                    tasks.create_task(one(arrival))
                pause = clients.next_seconds - self._now
                if pause == inf and not running:
                    return
                try:
                    async with asyncio.timeout(None if pause == inf else max(0.0, pause)):
                        await wake.wait()
                except TimeoutError:
                    continue

    async def _turn(self, session: Session, number: int) -> float:
        """When the answer ended."""
        options = self.options
        conversation = self._conversations.get(session.session_id) or self._begin(session)
        body = msgspec.json.encode(conversation.ask(number) | self._fields(session, number))
        server, exchange = options.server, Exchange()
        if options.session_header:
            server = replace(server, headers=server.headers | {options.session_header: session.session_id})
        arrival = self._now
        await stream_answer(server, options.api, body, options.request_seconds, exchange)
        end = self._now
        self.records.append(self._record(session, number, arrival, exchange))
        if exchange.error:
            self.errors.setdefault(exchange.error)
        else:
            conversation.answered(number, exchange)
            self.counted_by_server &= exchange.output_tokens is not None
            self.told_tokens |= any(exchange.token_ids)
        self._say(f"{len(self.records)} of {self.trace.turns} turns answered")
        if number + 1 == len(session.turns):
            del self._conversations[session.session_id]
        if options.hints and options.kind.sessions:
            await self._hint(session, number)
        return end

    def _begin(self, session: Session) -> Conversation:
        options = self.options
        if options.sends_tokens:
            found: Conversation = TokenConversation(session, options.vocabulary, options.answers)
        else:
            found = TextConversation(session, options.vocabulary, options.answers, options.api == "chat")
        self._conversations[session.session_id] = found
        return found

    def _fields(self, session: Session, number: int) -> Fields:
        options, kind, output = self.options, self.options.kind, session.turns[number].output_tokens
        fields: Fields = {"model": options.model.id, "max_tokens": output, "temperature": 0, "stream": True}
        fields["stream_options"] = {"include_usage": True}
        priority = session.priority + options.priority
        if kind.lengths:
            fields |= {"ignore_eos": True, "min_tokens": output}
        if kind.token_ids and options.api == "completions" and options.answers == "given":
            fields["return_token_ids"] = True
        if kind.priority and priority:
            fields["priority"] = priority
        if kind.salt and session.tenant:
            fields["cache_salt"] = session.tenant
        if kind.sessions:
            fields["session_id"] = session.session_id
        return fields | options.fields

    def _record(self, session: Session, number: int, arrival: float, exchange: Exchange) -> TurnRecord:
        result: TurnResult = "finished"
        if exchange.error:
            result = "refused" if exchange.status in _REFUSALS else "failed"
        events, tokens = exchange.events, exchange.tokens if exchange.events else 0
        known = [len(part) for part in exchange.token_ids]
        if sum(known) == tokens:
            times = [arrival + event for event, count in zip(events, known, strict=True) for _ in range(count)]
        else:  # tokens spread evenly over the events
            times = [arrival + events[place * len(events) // tokens] for place in range(tokens)]
        traced = session.turns[number].prompt_tokens
        return TurnRecord(
            session_id=session.session_id,
            turn=number,
            arrival_seconds=arrival,
            prompt_tokens=traced if exchange.prompt_tokens is None else exchange.prompt_tokens,
            tenant=session.tenant,
            priority=session.priority + self.options.priority,
            cached_tokens=exchange.cached_tokens,
            token_seconds=times,
            result=result,
        )

    async def _hint(self, session: Session, number: int) -> None:
        """Why a turn ended, or that the session did. A hint that fails is none."""
        method, path, body = "DELETE", f"/v1/sessions/{quote(session.session_id, safe='')}", b""
        if number + 1 < len(session.turns):
            end = session.turns[number].end
            if end is None:
                return
            method, path, body = "POST", f"{path}/end_turn", msgspec.json.encode({"end": end})
        try:
            async with asyncio.timeout(_HINT_SECONDS), request(self.options.server, method, path, body) as answer:
                if answer.status >= 300:
                    raise HttpFailed(f"HTTP {answer.status}: {shown(await answer.whole())}")
        except (HttpFailed, TimeoutError) as error:
            self.errors.setdefault(f"hint of a turn's end: {error}")


def _report(replay: _Replay, url: str, seconds: float) -> ReplayReport:
    options, trace, records = replay.options, replay.trace, replay.records
    left, machine = trace.left_out, environment()
    server = {
        "model": options.model.id,
        "url": url,
        "server": options.kind.name,
        "api": options.api,
        "prompts": "tokens" if options.sends_tokens else "text",
        "answers": replay.answers,
        "tokens counted by": "server" if replay.counted_by_server else "stream events",
        "client": f"{machine.cpu}, {machine.date}",
    }
    return ReplayReport(
        schema=SCHEMA,
        kind="measured",
        plan=server,
        traffic={
            "source": trace.source,
            "loop": "open" if options.agents is None else "closed",
            "agents": options.agents or 0,
            "time_scale": options.time_scale,
            "sessions": len(trace.sessions),
            "turns": trace.turns,
            "left_out_sessions": left.sessions,
            "left_out_turns": left.turns,
            "unfinished": trace.turns - len(records),
        },
        policy={},
        settings={"priority": options.priority, "hints": options.hints and options.kind.sessions},
        makespan_seconds=seconds,
        all=class_report("all", records, seconds, options.accelerators),
        priorities=classes_by(lambda record: record.priority, records, seconds, options.accelerators),
        tenants=classes_by(lambda record: record.tenant, records, seconds, options.accelerators),
        cache=None,
        machine=None,
        curves={name: curve(values) for name, values in latencies(records).items()},
        timeline=as_clients_saw_it(records, seconds),
        errors=tuple(replay.errors)[:_LISTED_ERRORS],
    )
