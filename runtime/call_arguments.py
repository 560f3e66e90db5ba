"""A tool call's arguments as chat templates meet them: as an object, or as the JSON text that the model wrote."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from typing import Any


class CallArguments(Mapping[str, Any]):
    """Templates walk over it, print it, put it between strings or make JSON of it. Its text is `text` wherever one is made, so
    that a conversation sent again is the tokens that were generated, whatever spaces the model puts into its JSON."""

    def __init__(self, values: Mapping[str, Any], text: str | None = None) -> None:
        self._values = values
        self._text = json.dumps(values, ensure_ascii=False) if text is None else text

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __str__(self) -> str:
        return self._text

    def __add__(self, other: object) -> str:
        return self._text + other if isinstance(other, str) else NotImplemented

    def __radd__(self, other: object) -> str:
        return other + self._text if isinstance(other, str) else NotImplemented


def json_with_arguments(value: Any, *, ensure_ascii: bool) -> str:
    """JSON of `value` in the usual layout, with the arguments in it as they are spelled."""
    if isinstance(value, CallArguments):
        return str(value)
    found: list[str] = []
    mark = secrets.token_hex(16)  # that no message holds

    def hold(item: Any) -> str:
        if not isinstance(item, CallArguments):
            raise TypeError(f"Object of type {type(item).__name__} is not JSON serializable")
        found.append(str(item))
        return mark

    parts = json.dumps(value, ensure_ascii=ensure_ascii, default=hold).split(json.dumps(mark))
    return parts[0] + "".join(text + part for text, part in zip(found, parts[1:], strict=True))


def plain(value: Any) -> Any:
    """For JSON in another layout."""
    if isinstance(value, CallArguments):
        return dict(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
