"""The scheduler: requests in, steps out, sampled tokens in, outcomes out. Pure: no clock, no I/O, no device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from .batch import launch, launch_copies
from .completion import complete, fail
from .costs import StepCosts
from .disk_tier import DiskJob, StoredUnit
from .errors import DuplicateRequest, InvalidRequest, PromptTooLong, QueueFull, SchedulerMisuse
from .flight import Flight
from .integrity import check_state
from .kv import KvManager
from .pipeline import Pipeline
from .planning import StepPlanner
from .policy import AGENTIC, Policy, due_time
from .prefix import PrefixChain, token_bytes
from .request import Outcome, Request, SchedulerLimits, SchedulerStats, TurnEnd
from .sequence import Sequence as TrackedSequence
from .state import SchedulerState
from .step import StepBatch

MAX_STEPS_IN_FLIGHT = 2
_INT32_MAX = 2**31 - 1


class Scheduler:
    """Continuous batching over `kv` within `limits`; the policy is in policy.py, the words in docs/scheduling.md.

    `schedule` and `complete` may strictly alternate, or `schedule` may run one step ahead: schedule N+1, then complete N. Steps
    complete (or fail) in the order they were launched. `kv` belongs to this scheduler alone. With a `pipeline` as many steps may
    be in flight as it is deep, and no sequence is in two of them. `costs` predict what steps take; without, rules go by counts.
    `weights` are the tenants' (1 where none is given).
    """

    def __init__(
        self,
        limits: SchedulerLimits,
        kv: KvManager,
        pipeline: Pipeline | None = None,
        *,
        policy: Policy = AGENTIC,
        costs: StepCosts | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self._state = SchedulerState(limits, kv, pipeline, policy, costs, weights)
        self._planner = StepPlanner(self._state)

    def submit(self, request: Request, chain: PrefixChain | None = None) -> None:
        """Queue a request; its prompt is hashed here, once, unless its `chain` is given. Nothing is kept when it raises.

        Raises InvalidRequest (empty prompt, tokens not int32 >= 0, max_tokens < 1, min_tokens < 0), DuplicateRequest (the id is
        in use), PromptTooLong (no room for one output token in the context, or larger than the KV pool), QueueFull.
        """
        state = self._state
        _check_request(request)
        if request.request_id in state.requests:
            raise DuplicateRequest(
                "this request id is in use",
                where="request_id",
                got=repr(request.request_id),
                fix="use a new id, or abort the first",
            )
        self._check_length(len(request.tokens))
        if self.is_full:
            raise QueueFull(
                "the waiting queue is full",
                where="schedule.max_waiting",
                expected=f"fewer than {state.limits.max_waiting} requests waiting",
                got=str(len(state.waiting)),
                fix="retry later, or add an engine",
            )
        limit = min(len(request.tokens) + request.max_tokens, state.limits.max_context, state.kv.tokens + 1)
        chain = self.chain(request) if chain is None else chain
        attained = state.sessions.attained(request.session_id, state.clock or 0.0)

        def prefill() -> float:
            return state.prefill_seconds(len(request.tokens), self.cached_tokens(request, chain))

        due = due_time(state.rules, state.clock, request, attained, prefill)
        state.enter(TrackedSequence(request, state.arrivals, limit, chain, state.kv.identity_tokens, due))
        state.arrivals += 1

    def chain(self, request: Request) -> PrefixChain:
        """What the full units of a request's prompt are known by. Raises InvalidRequest."""
        _check_request(request)
        chain = PrefixChain(self._state.kv.seed(request.salt), self._state.kv.identity_tokens)
        chain.extend(token_bytes(np.asarray(request.tokens, np.int32)))
        return chain

    def cached_tokens(self, request: Request, chain: PrefixChain) -> int:
        """How many of a prompt's tokens would come from the cache if it were admitted now."""
        return len(self._state.find_cached(chain, request.tokens).units) * self._state.kv.identity_tokens

    def tick(self, seconds: float) -> None:
        """It is `seconds` by the caller's clock, which never goes back; events that follow happen then."""
        self._state.clock = seconds if self._state.clock is None else max(self._state.clock, seconds)
        self._state.kv.clock.now = self._state.clock

    def add_disk(self, places: int, bytes_per_second: float, units: Iterable[StoredUnit] = ()) -> None:
        """As `KvManager.add_disk`."""
        self._state.kv.add_disk(places, bytes_per_second, units)

    def disk_jobs(self) -> list[DiskJob]:
        """What the tier on disk is to do, that was not told before. Each job is told to `disk_done` when it is done; steps go on
        meanwhile."""
        return self._state.kv.disk_jobs()

    def disk_done(self, number: int, well: bool) -> None:
        """A job is done, or could not be. Raises SchedulerMisuse for one that is not under way."""
        self._state.kv.disk_done(number, well)
        self._state.fetched(number)

    def end_turn(self, session_id: str, end: TurnEnd) -> None:
        """Hint: why the session's last turn ended, so when its next one is to be expected. Unknown sessions are ignored."""
        table = self._state.table
        session = table.find(session_id) if table is not None else None
        if table is not None and session is not None:
            table.end_turn(session, end)
        if session is None or session.admitted:
            self._state.kv.end_turn(session_id, end)

    def close_session(self, session_id: str) -> None:
        """Hint: the session has no further turn. Unknown sessions are ignored."""
        self._state.kv.close_session(session_id)
        table = self._state.table
        session = table.find(session_id) if table is not None else None
        if table is not None and session is not None:
            table.close(session)

    def abort(self, request_id: str) -> Outcome | None:
        """End a request now, waiting or running; rows of it in launched steps are dropped. None when the id is unknown."""
        sequence = self._state.requests.get(request_id)
        if sequence is None:
            return None
        self._state.finish(sequence)
        return sequence.outcome(None, "abort")

    def schedule(self) -> StepBatch | None:
        """The next step, or None when no row can run now. Raises SchedulerMisuse when `max_in_flight` are in flight already.

        A step without rows has copies. Where nothing is in flight and nobody waits but for his session's place, such steps save
        cached blocks to the host, for a few milliseconds each, until there are no more to be saved: then it is None.
        """
        state = self._state
        if len(state.flights) >= self.max_in_flight:
            raise SchedulerMisuse(f"complete step {state.flights[0].step_id} first: {self.max_in_flight} are in flight")
        decodes, chunks = self._planner.plan()
        return launch(state, decodes, chunks) if len(decodes) or chunks else launch_copies(state)

    def complete(self, step_id: int, tokens: Mapping[str, int] | Sequence[int] | NDArray[np.int32]) -> list[Outcome]:
        """Take in what step `step_id` sampled: by request id, or in the order of its logit rows.

        Gives one outcome per request that got a token. Raises SchedulerMisuse, and changes nothing, when the step is not the
        oldest in flight or the tokens are not one (>= 0) for each logit row.
        """
        flight = self._oldest(step_id)
        return complete(self._state, flight, _sampled(flight, tokens))

    def fail(self, step_id: int) -> list[Outcome]:
        """The executor could not run step `step_id`: its requests end with "error", all others go on."""
        return fail(self._state, self._oldest(step_id))

    @property
    def has_work(self) -> bool:
        """Whether a request is unfinished or a step in flight."""
        return bool(self._state.requests or self._state.flights)

    @property
    def next_wake(self) -> float | None:
        """After `schedule` gave None with no step in flight: the time (of `tick`) from which it may give a step without a further
        event. None: never."""
        return self._state.waiting.wake

    @property
    def free_slots(self) -> int:
        """Slots for requests beyond all that are unfinished; negative where some wait for one."""
        return self._state.limits.max_sequences - len(self._state.requests)

    @property
    def is_full(self) -> bool:
        """Whether no further request may wait."""
        return len(self._state.waiting) >= self._state.limits.max_waiting

    @property
    def limits(self) -> SchedulerLimits:
        return self._state.limits

    @property
    def max_in_flight(self) -> int:
        """Steps that may be launched and not complete."""
        pipeline = self._state.pipeline
        return MAX_STEPS_IN_FLIGHT if pipeline is None else pipeline.depth

    @property
    def steps_in_flight(self) -> int:
        return len(self._state.flights)

    def stats(self) -> SchedulerStats:
        state = self._state
        return SchedulerStats(
            running=len(state.running),
            waiting=len(state.waiting) + len(state.fetching),
            parked=state.waiting.parked,
            kv_usage=state.kv.usage,
            host_usage=state.kv.host_usage,
            evictions=state.kv.evictions,
            offloaded_tokens=state.kv.offloaded_tokens,
            reloaded_tokens=state.kv.reloaded_tokens,
            disk_usage=state.kv.disk_usage,
            **state.kv.disk_tokens,
            **asdict(state.counters),
        )

    def check_integrity(self) -> None:
        """Verify every invariant of scheduler and KV manager; raises IntegrityError. O(pool): for tests and simulators."""
        check_state(self._state)

    def _oldest(self, step_id: int) -> Flight:
        flights = self._state.flights
        if not flights or flights[0].step_id != step_id:
            oldest = f"step {flights[0].step_id} is the oldest in flight" if flights else "no step is in flight"
            raise SchedulerMisuse(f"step {step_id} cannot complete now: {oldest}")
        return flights[0]

    def _check_length(self, length: int) -> None:
        limits, kv = self._state.limits, self._state.kv
        if length > limits.max_context - 1:
            raise PromptTooLong(
                "the prompt leaves no room for an output token in the context",
                limit=limits.max_context - 1,
                length=length,
                fix="shorten the prompt, or compile with a larger --max-context",
            )
        if length > kv.tokens:
            raise PromptTooLong(
                "the prompt does not fit the KV pool",
                limit=kv.tokens,
                length=length,
                fix="shorten the prompt, or plan a larger pool",
            )


def _check_request(request: Request) -> None:
    tokens = request.tokens
    if tokens.ndim != 1 or not len(tokens):
        raise _invalid("the prompt is empty", "tokens", "a list of at least 1 token", f"shape {tokens.shape}")
    if tokens.dtype.kind not in "iu" or int(tokens.min()) < 0 or int(tokens.max()) > _INT32_MAX:
        raise _invalid("the prompt has a token that is no token id", "tokens", "integers from 0 to 2**31 - 1", str(tokens.dtype))
    if request.max_tokens < 1:
        raise _invalid("no output is asked for", "max_tokens", "at least 1", str(request.max_tokens))
    if request.min_tokens < 0:
        raise _invalid("min_tokens is negative", "min_tokens", "at least 0", str(request.min_tokens))
    if not -_INT32_MAX <= request.priority <= _INT32_MAX:
        raise _invalid("the priority is out of range", "priority", "a 32-bit integer", str(request.priority))


def _invalid(what: str, where: str, expected: str, got: str) -> InvalidRequest:
    return InvalidRequest(what, where=where, expected=expected, got=got, fix=f"correct {where} in the request")


def _sampled(flight: Flight, tokens: Mapping[str, int] | Sequence[int] | NDArray[np.int32]) -> NDArray[np.int32]:
    if not isinstance(tokens, np.ndarray) and isinstance(tokens, Mapping):  # a mapping is slow to tell
        missing = [name for name in flight.sampled_ids if name not in tokens]
        if missing:
            raise SchedulerMisuse(f"step {flight.step_id} sampled no token for {missing}")
        tokens = [tokens[name] for name in flight.sampled_ids]
    sampled = np.asarray(tokens, dtype=np.int32)
    if sampled.shape != (len(flight.samples),) or (len(sampled) and np.minimum.reduce(sampled) < 0):
        raise SchedulerMisuse(
            f"step {flight.step_id} has {len(flight.samples)} logit rows; wanted as many tokens >= 0, got shape {sampled.shape}"
        )
    return sampled
