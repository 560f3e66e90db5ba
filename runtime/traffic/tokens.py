"""The turns of one session as token ids, each at the cost of what is new in it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .contents import Vocabulary, named, tokens_of
from .session import Prompt, Session

_KEPT = 2


class SessionTokens:
    """Prompts and outputs (int32) of a session's turns. Turns are to be asked for in order; the latest two are at hand.

    Where a prompt continues the whole prompt before it, the answer to that one stands behind it, as far as the trace leaves
    room (clients drop parts of answers): `output` tells what the trace has there, `answered` puts something else there. Lengths
    are always the trace's.
    """

    def __init__(self, session: Session, vocabulary: Vocabulary | None = None) -> None:
        self._session, self._vocabulary = session, vocabulary or Vocabulary()
        self._prompts: dict[int, NDArray[np.int32]] = {}
        self._answers: dict[int, NDArray[np.int32]] = {}

    def prompt(self, turn: int) -> NDArray[np.int32]:
        """All tokens of a turn's prompt; not to be written to."""
        if turn not in self._prompts:
            self._prompts[turn] = self._built(turn)
            for old in [number for number in self._prompts if number <= turn - _KEPT]:
                del self._prompts[old]
                self._answers.pop(old, None)
        return self._prompts[turn]

    def output(self, turn: int) -> NDArray[np.int32]:
        """An answer as long as the traced one: what the next prompt has in its place, and tokens of its own beyond that."""
        item = self._session.turns[turn]
        begin, fresh = item.prompt_tokens, named(self._session.session_id, "output", turn)
        whole = Prompt(np.array([fresh], np.uint64), np.array([item.output_tokens]))
        answer = tokens_of(whole, self._vocabulary)
        self.prompt(turn)
        if turn + 1 < len(self._session.turns) and self._continues(turn + 1):
            known = self.prompt(turn + 1)[begin : begin + item.output_tokens]
            answer[: len(known)] = known
        return answer

    def answered(self, turn: int, tokens: NDArray[np.int32]) -> None:
        """What really was generated: the prompts that follow continue it."""
        self.prompt(turn)
        self._prompts.pop(turn + 1, None)
        self._answers[turn] = np.asarray(tokens, np.int32)

    def shared(self, turn: int) -> int:
        """Tokens at the beginning of a turn's prompt that are those of the prompt and the answer before it."""
        if not turn:
            return 0
        before, prompt = self._session.turns[turn - 1], self._session.turns[turn].prompt
        if not self._continues(turn):
            return prompt.common_tokens(before.prompt)
        answer = self._answers.get(turn - 1)
        return min(len(prompt), before.prompt_tokens + (before.output_tokens if answer is None else len(answer)))

    def _continues(self, turn: int) -> bool:
        before, prompt = self._session.turns[turn - 1].prompt, self._session.turns[turn].prompt
        return prompt.common_tokens(before) == len(before)

    def _built(self, turn: int) -> NDArray[np.int32]:
        prompt, before = self._session.turns[turn].prompt, self._prompts.get(turn - 1)
        if before is None:
            return tokens_of(prompt, self._vocabulary)
        spans = prompt.common(self._session.turns[turn - 1].prompt)
        known = int(prompt.ends[spans - 1]) if spans else 0
        tokens = np.concatenate((before[:known], tokens_of(prompt, self._vocabulary, spans)))
        if self._continues(turn):
            tokens[: len(before)] = before
            room = tokens[len(before) :]
            answer = self._answers.get(turn - 1, room[:0])[: len(room)]
            room[: len(answer)] = answer
        return tokens
