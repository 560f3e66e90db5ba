"""Sessions of a coding agent as kv-cache-tester publishes them: one JSON file each, hash ids of 64-token blocks local to it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..scheduling.request import TurnEnd
from .blocks import block_prompt, tail_of_next
from .contents import derived, named
from .errors import TraceError, bad_place
from .lines import read_text
from .session import Session, Turn

# How long an answer took where a trace does not say: a start, then tokens at a usual rate.
_ANSWER_SECONDS, _SECONDS_PER_TOKEN = 2.0, 0.02


class _Request(msgspec.Struct):
    t: float
    prompt_tokens: int = msgspec.field(name="in")
    output_tokens: int = msgspec.field(name="out")
    hash_ids: list[int]
    stop: str = ""
    output_types: list[str] = []
    api_time: float | None = None

    @property
    def end(self) -> TurnEnd | None:
        if self.stop == "tool_use" or (not self.stop and "tool_use" in self.output_types):
            return "tool_call"
        return "end_of_turn" if self.stop == "end_turn" else None

    @property
    def seconds(self) -> float:
        return _ANSWER_SECONDS + self.output_tokens * _SECONDS_PER_TOKEN if self.api_time is None else self.api_time


class _File(msgspec.Struct):
    id: str
    requests: list[_Request]
    block_size: int = 64
    tool_tokens: int = 0
    system_tokens: int = 0


def read_session(path: Path) -> Session:
    """Its tools and system prompt are those of every session that has as many tokens of them: who published the trace says how
    long they are, not what they are. Raises TraceError."""
    try:
        content = msgspec.json.decode(read_text(path), type=_File)
    except msgspec.DecodeError as error:
        raise bad_place(str(path), "a session: id, block_size and requests with t, in, out, hash_ids", str(error)) from None
    _check(path, content)
    contents = _Contents(content)
    prompts = [
        block_prompt(contents.of(request.hash_ids), content.block_size, request.prompt_tokens, (content.id, number))
        for number, request in enumerate(content.requests)
    ]
    blocks = [min(len(item.hash_ids), item.prompt_tokens // content.block_size) for item in content.requests]
    joined = [tail_of_next(one, two, full) for one, two, full in zip(prompts, prompts[1:], blocks, strict=False)]
    turns = []
    for number, (request, prompt) in enumerate(zip(content.requests, [*joined, prompts[-1]], strict=True)):
        before = content.requests[number - 1] if number else None
        gap = 0.0 if before is None else max(0.0, request.t - before.t - before.seconds)
        turns.append(Turn(prompt, max(1, request.output_tokens), gap, request.t, request.end))
    return Session(content.id, tuple(turns))


def _check(path: Path, content: _File) -> None:
    if not content.requests or content.block_size < 1:
        raise TraceError("The session has no requests.", where=str(path), expected="requests, block_size of 1 or more")
    time = 0.0
    for number, request in enumerate(content.requests):
        place = f"{path}: $.requests[{number}]"
        if request.prompt_tokens < 1 or request.output_tokens < 0:
            raise bad_place(place, "at least 1 token in, 0 out", f"in {request.prompt_tokens}, out {request.output_tokens}")
        if request.t < time or request.seconds < 0:
            raise bad_place(place, f"t of {time:g} or later, an api_time of no less than 0", f"t {request.t:g}")
        if request.hash_ids and not 0 <= min(request.hash_ids) <= max(request.hash_ids) < 2**63:
            raise bad_place(place, "hash_ids from 0 to 2**63 - 1", f"{min(request.hash_ids)} to {max(request.hash_ids)}")
        time = request.t


class _Contents:
    """What the local hash ids of a session stand for."""

    def __init__(self, content: _File) -> None:
        self._own = named("session", content.id)
        size, tools, system = content.block_size, content.tool_tokens, content.system_tokens
        whole = next((item.hash_ids for item in content.requests if item.prompt_tokens >= tools + system), [])
        common = (tools + system) // size
        self._ids = np.array(whole[:common], np.int64)
        places = np.arange(len(self._ids))
        of_tools = derived(named("tools", tools, size, shared=True), places)
        of_system = derived(named("system", tools, system, size, shared=True), places)
        self._shared = np.where(places < tools // size, of_tools, of_system)
        self._order = np.argsort(self._ids, kind="stable")

    def of(self, hash_ids: list[int]) -> NDArray[np.uint64]:
        ids = np.array(hash_ids, np.int64)
        contents = derived(self._own, ids)
        if not len(self._ids):
            return contents
        places = self._order[np.minimum(np.searchsorted(self._ids, ids, sorter=self._order), len(self._ids) - 1)]
        return np.where(self._ids[places] == ids, self._shared[places], contents)
