"""How the arguments of tool calls that were given out are spelled.

Clients send calls back, often with their arguments written anew, and templates write them once more; where a model's spelling is
another than theirs, the conversation's next turn would have other tokens than were generated, and could reuse none from there on.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from ..call_arguments import CallArguments


class GivenCalls:
    """Keeps spellings that are not the usual one, `most` characters of them, those used last. A caller in another scope finds
    none of this one's."""

    def __init__(self, most: int = 16 << 20) -> None:
        self._spelled: OrderedDict[bytes, str] = OrderedDict()
        self._most, self._characters = most, 0

    def __len__(self) -> int:
        return len(self._spelled)

    def remember(self, scope: str, call_id: str, arguments: str) -> None:
        """`arguments` is JSON text of an object, as the model wrote it."""
        try:
            usual = _usual(json.loads(arguments))
        except (ValueError, RecursionError):  # numbers too long, or nested too deeply
            return
        if usual == arguments or len(arguments) > self._most:
            return
        key = _key(scope, call_id, usual)
        self._characters += len(arguments) - len(self._spelled.pop(key, ""))
        self._spelled[key] = arguments
        while self._characters > self._most:
            _, oldest = self._spelled.popitem(last=False)
            self._characters -= len(oldest)

    def arguments(self, scope: str, call_id: str, values: Mapping[str, Any]) -> CallArguments:
        """`values` for a template, spelled as they were when the call was given out; else the usual way. Raises RecursionError
        when they are nested too deeply."""
        usual = _usual(values)
        key = _key(scope, call_id, usual)
        spelled = self._spelled.get(key)
        if spelled is None:
            return CallArguments(values, usual)
        self._spelled.move_to_end(key)
        return CallArguments(values, spelled)


def _usual(values: Mapping[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False)


def _key(scope: str, call_id: str, usual: str) -> bytes:
    return hashlib.sha256(json.dumps([scope, call_id, usual]).encode()).digest()
