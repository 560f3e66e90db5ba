"""A request in progress: its tokens so far, where it stands, what it holds."""

from __future__ import annotations

from enum import Enum, auto

import numpy as np
from numpy.typing import NDArray

from .prefix import PrefixChain, token_bytes
from .request import FinishReason, Outcome, Request
from .retention import LONGEST_HINT, Owner
from .sequence_blocks import SequenceBlocks
from .step import IntArray

NO_SLOT = -1


class Status(Enum):
    WAITING = auto()
    FETCHING = auto()
    """It waits for units on disk, and is not in the queue until they are on the host."""
    RUNNING = auto()
    FINISHED = auto()


class Sequence:
    """Mutable record of one request, changed on events only; what changes with every step is in the slot arrays.

    `tokens()` holds the prompt and the output known here; while running, the newest output tokens (fewer than one identity
    unit) are in the slot arrays and flushed here on events. `limit` is the total length at which the sequence ends.
    `chain` covers the full units of the prompt, and of the output once it is hashed. `computed` is the most tokens whose KV it
    ever had. `awaited_step`: the launched step that may still bring a token. `due` is policy rule 2's, `start_tag` its tenant's
    tag when it was first admitted; `service_seconds` of the machine it had while it held a slot, of `expected_seconds`.
    `reloaded_tokens`: how many of its cached tokens were brought back from the host when it was last admitted. `owner`: to whom
    its blocks belong. `fetches` are the jobs of the tier on disk that it waits for; `fetched`: what was on disk was asked for
    since it was last admitted, and is not asked for again.
    """

    __slots__ = (
        "_buffer",
        "arrival",
        "awaited_step",
        "blocks",
        "cached_tokens",
        "chain",
        "computed",
        "due",
        "expected_seconds",
        "fetched",
        "fetches",
        "had_rows",
        "length",
        "limit",
        "owner",
        "parked",
        "preempted_in_round",
        "prompt_length",
        "rank",
        "reloaded_tokens",
        "request",
        "service_seconds",
        "slot",
        "start_tag",
        "status",
        "unit_tokens",
    )

    def __init__(
        self, request: Request, arrival: int, limit: int, chain: PrefixChain, unit_tokens: int, due: float = 0.0
    ) -> None:
        self.request, self.arrival, self.limit, self.unit_tokens, self.due = request, arrival, limit, unit_tokens, due
        self.rank = (due, request.priority, arrival)
        self.start_tag: float | None = None
        self.expected_seconds = self.service_seconds = 0.0
        self._buffer = np.array(request.tokens, dtype=np.int32)
        self.length = self.prompt_length = len(self._buffer)
        self.chain = chain
        session, hint = request.session_id or request.request_id, min(request.retention_seconds or 0.0, LONGEST_HINT)
        self.owner = Owner(session, bool(request.session_id), chain.digests, hint)
        self.status = Status.WAITING
        self.slot = NO_SLOT
        self.blocks: SequenceBlocks | None = None
        self.cached_tokens = 0
        self.computed = 0
        self.preempted_in_round = self.awaited_step = -1
        self.reloaded_tokens = 0
        self.had_rows = self.parked = self.fetched = False
        self.fetches: set[int] = set()

    @property
    def request_id(self) -> str:
        return self.request.request_id

    def tokens(self) -> IntArray:
        """A view: prompt, then output."""
        return self._buffer[: self.length]

    def prompt(self) -> IntArray:
        return self._buffer[: self.prompt_length].copy()

    def output(self) -> IntArray:
        return self._buffer[self.prompt_length : self.length].copy()

    def append(self, tokens: NDArray[np.int32]) -> None:
        """Take over output tokens; amortised O(1) a token."""
        end = self.length + len(tokens)
        if end > len(self._buffer):
            grown = np.zeros(min(max(2 * end, 64), max(self.limit, end)), dtype=np.int32)
            grown[: self.length] = self._buffer[: self.length]
            self._buffer = grown
        self._buffer[self.length : end] = tokens
        self.length = end

    def hash_units(self, units: int) -> None:
        """Have the digests of the first `units` units, which must be full; each is computed once."""
        if len(self.chain) < units:
            known = self._buffer[len(self.chain) * self.unit_tokens : units * self.unit_tokens]
            self.chain.extend(token_bytes(known))

    def unit_bytes(self, unit: int) -> bytes:
        return token_bytes(self._buffer[unit * self.unit_tokens : (unit + 1) * self.unit_tokens])

    def is_stop(self, token: int, outputs_before: int) -> bool:
        return outputs_before >= self.request.min_tokens and token in self.request.stop_tokens

    def outcome(self, token: int | None, reason: FinishReason | None = None) -> Outcome:
        return Outcome(self.request_id, token, reason, token if reason == "stop" else None, self.cached_tokens)
