"""What a request says of its tools, as far as reading their calls needs it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

_KINDS = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object", type(None): "null"}
_WRITTEN = {"True": "true", "False": "false", "None": "null"}
_LITERAL = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\b(?:True|False|None)\b""", re.DOTALL)
_DEEPEST = 8


class ToolSchemas:
    """`tools` as OpenAI's API has them; what is not of that form is passed over."""

    def __init__(self, tools: Sequence[Any] = ()) -> None:
        self._properties: dict[str, Mapping[str, Any]] = {}
        for tool in tools:
            function = _mapping(_mapping(tool).get("function"))
            if isinstance(function.get("name"), str):
                self._properties[function["name"]] = _mapping(_mapping(function.get("parameters")).get("properties"))

    def __len__(self) -> int:
        return len(self._properties)

    def __contains__(self, name: str) -> bool:
        return name in self._properties

    def types(self, name: str, parameter: str) -> frozenset[str]:
        """JSON types that a parameter of a tool may have; empty when nothing is said of it."""
        return frozenset(_types(self._properties.get(name, {}).get(parameter), 0))


def argument_text(written: str, types: frozenset[str]) -> str:
    """The JSON text of an argument that was written without quotes: text where only text may be meant, else the JSON value that
    it spells, if that may be meant."""
    if types != {"string"}:
        for spelled in (written.strip(), _json_of_literal(written.strip())):
            kind = _kind(spelled)
            if kind in types or (kind == "integer" and "number" in types) or (kind and "string" not in types):
                return spelled
    return json.dumps(written, ensure_ascii=False)


def _kind(spelled: str) -> str:
    """Of a JSON value; "" for text, quoted or not."""
    try:
        kind = _KINDS[type(json.loads(spelled, parse_constant=_refuse))]
    except (ValueError, RecursionError):
        return ""
    return "" if kind == "string" else kind


def _json_of_literal(written: str) -> str:
    """JSON of what is written as Python prints it, as some templates do: True for true, '...' for "..."."""
    return _LITERAL.sub(_of_literal, written)


def _of_literal(match: re.Match[str]) -> str:
    found = match[0]
    if not found.startswith("'"):
        return _WRITTEN.get(found, found)
    inside = found[1:-1].replace("\\'", "'").replace('"', '\\"')
    return f'"{inside}"'


def _types(schema: Any, depth: int) -> set[str]:
    schema = _mapping(schema)
    stated = schema.get("type")
    found = {stated} if isinstance(stated, str) else {item for item in _list(stated) if isinstance(item, str)}
    found |= {_KINDS[type(value)] for value in _list(schema.get("enum")) if type(value) in _KINDS}
    if depth < _DEEPEST:
        for name in ("anyOf", "oneOf", "allOf"):
            for part in _list(schema.get(name)):
                found |= _types(part, depth + 1)
    return found


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def _refuse(constant: str) -> None:
    raise ValueError(constant)
