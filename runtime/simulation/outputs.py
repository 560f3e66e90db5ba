"""What the machine samples: the tokens that each request is to get, looked up for whole steps at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..scheduling.step import GroupedStep, Step, StepBatch

_FIRST_CAPACITY = 4096


class Outputs:
    """Answers by request, handed out by the slots in which requests run."""

    def __init__(self, groups: int, slots: int) -> None:
        self._tokens: NDArray[np.int32] = np.zeros(_FIRST_CAPACITY, np.int32)
        self._used = 0
        self._base: dict[str, int] = {}
        self._slots: NDArray[np.int64] = np.zeros((groups, slots), np.int64)

    def add(self, request_id: str, prompt_tokens: int, answer: NDArray[np.int32]) -> None:
        """Position p of the request's sequence holds `answer`[p - prompt_tokens]."""
        end = self._used + len(answer)
        if end > len(self._tokens):
            grown = np.zeros(max(end, 2 * len(self._tokens)), np.int32)
            grown[: self._used] = self._tokens[: self._used]
            self._tokens = grown
        self._tokens[self._used : end] = answer
        self._base[request_id] = self._used - prompt_tokens
        self._used = end

    def drop(self, request_id: str) -> None:
        """The request will not be admitted again."""
        self._base.pop(request_id, None)

    def sampled(self, step: Step) -> NDArray[np.int32]:
        """One token for each logit row of a step that is being launched, group by group."""
        if not isinstance(step, GroupedStep):
            return self._of_part(0, step)
        parts = [self._of_part(group, part) for group, part in enumerate(step.parts) if part is not None]
        return np.concatenate(parts)

    def _of_part(self, group: int, part: StepBatch) -> NDArray[np.int32]:
        slots = self._slots[group]
        for admission in part.admissions:
            slots[admission.slot] = self._base.get(admission.request_id, 0)
        return self._tokens[slots[part.logit_slots] + part.positions[part.logit_rows] + 1]
