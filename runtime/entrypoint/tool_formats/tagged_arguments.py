"""Arguments that are written one by one between tags, without quotes: made into JSON text as they come."""

from __future__ import annotations

import json
from collections.abc import Sequence

from .answer_parts import Output
from .cursor import Cursor, Malformed, Steps
from .tool_schemas import ToolSchemas, argument_text


class TaggedArguments:
    """Of a call of tool `name`, from its first argument on."""

    def __init__(self, cursor: Cursor, output: Output, tools: ToolSchemas, name: str) -> None:
        self._cursor, self._output, self._tools, self._name = cursor, output, tools, name
        self._keys: set[str] = set()
        output.start(name)
        output.arguments("{")

    def read(self, key: str, ends: Sequence[str]) -> Steps[None]:
        """The value of `key`, up to one of `ends`. What can only be text is given out as it comes. Raises Malformed."""
        if not key or key in self._keys:
            raise Malformed
        self._output.arguments((", " if self._keys else "") + json.dumps(key, ensure_ascii=False) + ": ")
        self._keys.add(key)
        types = self._tools.types(self._name, key)
        if types == {"string"}:
            self._output.arguments('"')
            if (yield from self._cursor.pass_on(ends, self._escaped)) is None:
                raise Malformed
            self._output.arguments('"')
        else:
            written, _ = yield from self._cursor.until(ends)
            self._output.arguments(argument_text(written, types))

    def end(self) -> None:
        self._output.arguments("}")
        self._output.end()

    def _escaped(self, text: str) -> None:
        self._output.arguments(json.dumps(text, ensure_ascii=False)[1:-1])
