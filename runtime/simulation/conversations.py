"""Turns as the scheduler's requests: their tokens, the answers they are to get, and prefixes hashed once in a session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..scheduling.prefix import PrefixChain, token_bytes
from ..scheduling.request import Request
from ..traffic.contents import Vocabulary
from ..traffic.session import Session
from ..traffic.tokens import SessionTokens


@dataclass(slots=True)
class _Conversation:
    tokens: SessionTokens
    chain: PrefixChain | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A turn's request, the digests of its prompt, and the tokens to be sampled for it."""

    request: Request
    chain: PrefixChain
    answer: NDArray[np.int32]


class Conversations:
    """All sessions under way. `seed_of` gives the beginning of a tenant's chains, as `KvManager.seed`."""

    def __init__(self, seed_of: Callable[[str], bytes], unit_tokens: int, vocabulary: Vocabulary | None = None) -> None:
        self._seed_of, self._unit_tokens, self._vocabulary = seed_of, unit_tokens, vocabulary
        self._open: dict[str, _Conversation] = {}

    def ask(self, session: Session, number: int) -> Asked:
        """Turn `number` of a session, in order. Tenants share no prefixes. It ends by its traced length, nothing stops it."""
        found = self._open.get(session.session_id)
        if found is None:
            found = self._open[session.session_id] = _Conversation(SessionTokens(session, self._vocabulary))
        turn, tokens = session.turns[number], found.tokens.prompt(number)
        request = Request(
            request_id=f"{session.session_id}/{number}",
            tokens=tokens,
            max_tokens=turn.output_tokens,
            priority=session.priority,
            salt=session.tenant,
            session_id=session.session_id,
            tenant=session.tenant,
        )
        chain = found.chain = self._chain(session, found, number, tokens)
        return Asked(request, chain, found.tokens.output(number))

    def close(self, session: Session) -> None:
        """The session has no further turn."""
        self._open.pop(session.session_id, None)

    def _chain(self, session: Session, found: _Conversation, number: int, tokens: NDArray[np.int32]) -> PrefixChain:
        """The chain of the turn before, with what was hashed of its answer, goes on where this prompt differs."""
        before, chain, size = found.chain, PrefixChain(self._seed_of(session.tenant), self._unit_tokens), self._unit_tokens
        if before is not None:
            units = min(found.tokens.shared(number) // size, len(before), len(tokens) // size)
            chain.digests = before.digests[: units + 1]
        chain.extend(token_bytes(tokens[len(chain) * size :]))
        return chain
