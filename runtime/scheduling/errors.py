"""Errors of this room: refusals a client sees, and misuse that only a bug in the caller can cause."""

from __future__ import annotations

from typing import ClassVar

from ...plans.errors import TokenspeedError


class RequestRefused(TokenspeedError):
    """The request was never accepted; nothing of it is kept. `code` is its machine-readable name."""

    code: ClassVar[str] = "refused"


class QueueFull(RequestRefused):
    code = "queue_full"


class PromptTooLong(RequestRefused):
    """The prompt exceeds the context, or the whole KV pool. `limit` and `length` count tokens."""

    code = "prompt_too_long"

    def __init__(self, what: str, *, limit: int, length: int, fix: str) -> None:
        self.limit, self.length = limit, length
        super().__init__(what, where="prompt", expected=f"at most {limit} tokens", got=f"{length} tokens", fix=fix)


class DuplicateRequest(RequestRefused):
    code = "duplicate_request"


class InvalidRequest(RequestRefused):
    code = "invalid_request"


class SchedulerMisuse(RuntimeError):
    """The caller broke the order of calls: unknown step, too many steps in flight, wrong number of sampled tokens."""


class HandleConsumed(RuntimeError):
    """A KV block handle was used after the transition that consumed it."""


class OutOfBlocks(RuntimeError):
    """More KV blocks were taken than are free or evictable; callers ask `KvManager.available` first."""


class IntegrityError(AssertionError):
    """`check_integrity` found a broken invariant: a bug in this room, never a bad input."""
