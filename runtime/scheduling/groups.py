"""Several groups of ranks, each with sequences and KV blocks of its own, as one scheduler: which group a request goes to, and
one step of all of them. Pure, as the schedulers of the groups are."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .disk_tier import DiskJob
from .errors import DuplicateRequest, SchedulerMisuse
from .request import Outcome, Request, SchedulerStats, TurnEnd
from .scheduler import Scheduler
from .step import GroupedStep

_MOST_SESSIONS = 8192


class Candidate(NamedTuple):
    """A group as a request sees it: whether its queue is full, whether a slot is free there, rows of work it has, and how many of
    the request's tokens it holds already."""

    full: bool
    free: bool
    work: int
    cached: int


def choose_group(prompt: int, candidates: Sequence[Candidate], home: int | None = None) -> int:
    """Where a prompt of so many tokens goes.

    A group whose queue takes it, before one that would refuse it; one with a free slot, before one where it waits; then the one
    that has the fewest rows to compute with it, which its cached tokens are not. Of equal ones, the first.

    Its session's `home` is taken to have a slot for it, and all of its prompt: so a session stays where it was, unless that group
    has more to do than another by as much as the whole prompt.
    """

    def order(group: int) -> tuple[bool, bool, int, int]:
        found = candidates[group]
        if group == home:
            return found.full, False, found.work, group
        return found.full, not found.free, found.work + prompt - found.cached, group

    return min(range(len(candidates)), key=order)


@dataclass(slots=True)
class _Placed:
    """An unfinished request: its group, and the rows that it was expected to take when it came."""

    group: int
    work: int


class GroupedScheduler:
    """The interface of `Scheduler` over one for each group, all with the same limits. A request stays in the group it went to,
    and its session's next one goes there too, unless another has much less to do.

    A step has a part of every group that has rows. `output_tokens` is how many a request is expected to get, if it asks for more.
    """

    def __init__(self, schedulers: Sequence[Scheduler], output_tokens: int) -> None:
        self.groups = tuple(schedulers)
        self._output_tokens = output_tokens
        self._placed: dict[str, _Placed] = {}
        self._homes: OrderedDict[str, int] = OrderedDict()
        self._work = [0] * len(self.groups)
        self._flights: deque[GroupedStep] = deque()
        self._next_step = 0
        self._last_rows = 0

    def submit(self, request: Request) -> None:
        """Queue a request in the group that `choose_group` says. Raises what `Scheduler.submit` does."""
        if request.request_id in self._placed:
            raise DuplicateRequest(
                "this request id is in use",
                where="request_id",
                got=repr(request.request_id),
                fix="use a new id, or abort the first",
            )
        chain = self.groups[0].chain(request)
        candidates = [
            Candidate(scheduler.is_full, scheduler.free_slots > 0, work, scheduler.cached_tokens(request, chain))
            for scheduler, work in zip(self.groups, self._work, strict=True)
        ]
        group = choose_group(len(request.tokens), candidates, self._homes.get(request.session_id))
        self.groups[group].submit(request, chain)
        self._settle(request.session_id, group)
        work = len(request.tokens) - candidates[group].cached + min(request.max_tokens, self._output_tokens)
        self._placed[request.request_id] = _Placed(group, work)
        self._work[group] += work

    def group_of(self, request_id: str) -> int | None:
        """The group of an unfinished request."""
        placed = self._placed.get(request_id)
        return None if placed is None else placed.group

    def tick(self, seconds: float) -> None:
        """As `Scheduler.tick`, of all groups."""
        for scheduler in self.groups:
            scheduler.tick(seconds)

    def end_turn(self, session_id: str, end: TurnEnd) -> None:
        for scheduler in self.groups:
            scheduler.end_turn(session_id, end)

    def close_session(self, session_id: str) -> None:
        for scheduler in self.groups:
            scheduler.close_session(session_id)
        self._homes.pop(session_id, None)

    def _settle(self, session_id: str, group: int) -> None:
        """The session's next turn belongs where this one went; another group forgets what it had of it."""
        if not session_id:
            return
        before = self._homes.get(session_id, group)
        if before != group:
            self.groups[before].close_session(session_id)
        self._homes[session_id] = group
        self._homes.move_to_end(session_id)
        if len(self._homes) > _MOST_SESSIONS:
            self._homes.popitem(last=False)

    def abort(self, request_id: str) -> Outcome | None:
        group = self.group_of(request_id)
        if group is None:
            return None
        outcome = self.groups[group].abort(request_id)
        self._forget(request_id)
        return outcome

    def schedule(self) -> GroupedStep | None:
        """The next step, or None when no group has a row that can run now."""
        if len(self._flights) >= self.max_in_flight:
            raise SchedulerMisuse(f"complete step {self._flights[0].step_id} first: {self.max_in_flight} are in flight")
        parts = tuple(scheduler.schedule() for scheduler in self.groups)
        if not any(parts):
            return None
        step = GroupedStep(self._next_step, parts, self.groups[0].limits.max_sequences)
        self._flights.append(step)
        self._next_step += 1
        self._last_rows = step.rows
        return step

    def complete(self, step_id: int, tokens: Mapping[str, int] | Sequence[int] | NDArray[np.int32]) -> list[Outcome]:
        """Take in what step `step_id` sampled: by request id, or group by group in the order of the groups' logit rows."""
        step = self._oldest(step_id)
        if isinstance(tokens, Mapping):
            tokens = [tokens[name] for name in step.logit_request_ids]
        sampled, outcomes, before = np.asarray(tokens, np.int32), list[Outcome](), 0
        if sampled.shape != (len(step.logit_request_ids),) or (len(sampled) and int(sampled.min()) < 0):
            wanted = len(step.logit_request_ids)
            raise SchedulerMisuse(f"step {step_id} has {wanted} logit rows; wanted as many tokens >= 0, got {sampled.tolist()}")
        for scheduler, part in zip(self.groups, step.parts, strict=True):
            if part is not None:
                after = before + len(part.logit_rows)
                outcomes += scheduler.complete(part.step_id, sampled[before:after])
                before = after
        return self._retired(outcomes)

    def fail(self, step_id: int) -> list[Outcome]:
        """No group could run step `step_id`: its requests end with "error", all others go on."""
        step = self._oldest(step_id)
        parts = zip(self.groups, step.parts, strict=True)
        outcomes = [outcome for scheduler, part in parts if part is not None for outcome in scheduler.fail(part.step_id)]
        return self._retired(outcomes)

    @property
    def has_work(self) -> bool:
        return any(scheduler.has_work for scheduler in self.groups)

    @property
    def next_wake(self) -> float | None:
        """As `Scheduler.next_wake`, of the first group."""
        return min((wake for scheduler in self.groups if (wake := scheduler.next_wake) is not None), default=None)

    @property
    def max_in_flight(self) -> int:
        """Steps that may be launched and not complete."""
        return self.groups[0].max_in_flight

    @property
    def steps_in_flight(self) -> int:
        return len(self._flights)

    def stats(self) -> SchedulerStats:
        """Sums over the groups; shares are of all their blocks together, `steps` are steps of all groups together."""
        found = [scheduler.stats() for scheduler in self.groups]
        sums: dict[str, Any] = {
            field: sum(getattr(stats, field) for stats in found) for field in SchedulerStats.__struct_fields__
        }
        sums |= {name: sums[name] / len(found) for name in ("kv_usage", "host_usage", "disk_usage")}
        sums |= {"steps": self._next_step, "last_step_rows": self._last_rows}
        return SchedulerStats(**sums)

    def check_integrity(self) -> None:
        """Verify every invariant of all groups; raises IntegrityError."""
        for scheduler in self.groups:
            scheduler.check_integrity()

    def disk_jobs(self) -> list[DiskJob]:
        """None: groups have no tier on disk."""
        return []

    def disk_done(self, number: int, well: bool) -> None:
        raise SchedulerMisuse(f"no job {number} of the tier on disk is under way")

    def _retired(self, outcomes: list[Outcome]) -> list[Outcome]:
        self._flights.popleft()
        for outcome in outcomes:
            if outcome.finish_reason is not None:
                self._forget(outcome.request_id)
        return outcomes

    def _forget(self, request_id: str) -> None:
        placed = self._placed.pop(request_id)
        self._work[placed.group] -= placed.work

    def _oldest(self, step_id: int) -> GroupedStep:
        if not self._flights or self._flights[0].step_id != step_id:
            oldest = f"step {self._flights[0].step_id} is the oldest" if self._flights else "no step is"
            raise SchedulerMisuse(f"step {step_id} cannot complete now: {oldest} in flight")
        return self._flights[0]
