"""A session's turns as request bodies: tokens, text or chat messages, with the answers that were really given in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..traffic.contents import Vocabulary
from ..traffic.session import Session
from ..traffic.tokens import SessionTokens
from .exchange import Exchange

Answers = Literal["given", "traced"]
Fields = dict[str, object]

# Words that most tokenizers know as one token each.
WORDS = (
    "time", "people", "water", "system", "number", "point", "house", "world", "school", "state", "family", "group",
    "and", "the", "of", "to", "in", "is", "for", "that", "with", "on", "as", "are", "this", "from", "or", "have",
    "new", "more", "one", "two", "first", "last", "long", "great", "little", "own", "other", "old", "right", "big",
    "high", "different", "small", "large", "next", "early", "young", "important", "few", "public", "bad", "same",
    "able", "work", "part", "case", "week", "company", "program", "question", "government", "night",
)  # fmt: skip


class Conversation(Protocol):
    def ask(self, turn: int) -> Fields:
        """What the body of a turn's request says: `prompt` or `messages`. Turns come in order."""
        ...

    def answered(self, turn: int, exchange: Exchange) -> None:
        """The turn's answer is there and without error."""
        ...


class TokenConversation:
    """Prompts as lists of tokens. An answer whose tokens the server does not tell is taken to be the traced one."""

    def __init__(self, session: Session, vocabulary: Vocabulary, answers: Answers) -> None:
        self._tokens, self._answers = SessionTokens(session, vocabulary), answers

    def ask(self, turn: int) -> Fields:
        return {"prompt": self._tokens.prompt(turn).tolist()}

    def answered(self, turn: int, exchange: Exchange) -> None:
        tokens = [token for part in exchange.token_ids for token in part]
        if self._answers == "given" and tokens:
            self._tokens.answered(turn, np.array(tokens, np.int32))


class TextConversation:
    """Prompts as text: a word for each token, or the trace's own text. As messages for chat, else one after the other.

    A turn that goes on with the conversation adds the answer and a message with what else is new; any other starts afresh.
    """

    def __init__(self, session: Session, vocabulary: Vocabulary, answers: Answers, chat: bool) -> None:
        self._session, self._answers, self._chat = session, answers, chat
        self._tokens = SessionTokens(session, vocabulary)
        self._messages: list[dict[str, str]] = []
        self._answer: tuple[str, int] | None = None

    def ask(self, turn: int) -> Fields:
        own = self._session.turns[turn].prompt.text
        if own is not None:
            self._messages = [_message("user", own)]
        elif self._messages and self._answer is not None and self._continues(turn):
            text, length = self._answer
            rest = self._tokens.prompt(turn)[self._session.turns[turn - 1].prompt_tokens + length :]
            self._messages += [_message("assistant", text), _message("user", words(rest) or WORDS[0])]
        else:
            self._messages = [_message("user", words(self._tokens.prompt(turn)))]
        self._answer = None
        return {"messages": self._messages} if self._chat else {"prompt": " ".join(item["content"] for item in self._messages)}

    def answered(self, turn: int, exchange: Exchange) -> None:
        if self._answers == "given":
            self._answer = "".join(exchange.texts), exchange.tokens
        else:
            output = self._tokens.output(turn)
            self._answer = words(output), len(output)

    def _continues(self, turn: int) -> bool:
        before, prompt = self._session.turns[turn - 1].prompt, self._session.turns[turn].prompt
        return prompt.common_tokens(before) == len(before)


def words(tokens: NDArray[np.int32] | Sequence[int]) -> str:
    return " ".join(WORDS[int(token) % len(WORDS)] for token in tokens)


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
