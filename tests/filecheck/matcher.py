"""Checks printed text against CHECK comments: a small part of LLVM's FileCheck, enough for one input and one output.

`// CHECK: text` is found after the match before it; CHECK-NEXT on the line after; CHECK-SAME later on the same line;
CHECK-NOT nowhere between the matches around it. Runs of blanks are one blank. `{{regex}}` matches a regular expression,
`[[NAME:regex]]` remembers what it matched and `[[NAME]]` is that text again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_DIRECTIVE = re.compile(r"//\s*CHECK(?:-(NEXT|SAME|NOT))?:\s*(.*?)\s*$")
_PART = re.compile(r"\{\{(.*?)\}\}|\[\[(\w+):(.*?)\]\]|\[\[(\w+)\]\]")


class CheckFailed(AssertionError):
    """The text is not what the checks say; names the check, its line and where the search began."""


@dataclass(frozen=True)
class Check:
    kind: str
    text: str
    line: int


def read_checks(source: str) -> list[Check]:
    """Raises ValueError for a comment that looks like a check and is none, or when there are none."""
    checks = []
    for number, line in enumerate(source.splitlines(), 1):
        found = _DIRECTIVE.search(line)
        if found:
            checks.append(Check(found[1] or "CHECK", found[2], number))
        elif "CHECK" in line:
            raise ValueError(f"line {number} is no check: {line.strip()}")
    if not any(check.kind != "NOT" for check in checks):
        raise ValueError("nothing is checked")
    if checks[0].kind in {"NEXT", "SAME"}:
        raise ValueError(f"line {checks[0].line}: nothing was matched before CHECK-{checks[0].kind}")
    return checks


def check_text(source: str, output: str) -> None:
    """Hold `output` against the checks in `source`. Raises CheckFailed."""
    text = re.sub(r"[ \t]+", " ", output)
    names: dict[str, str] = {}
    position, pending = 0, list[Check]()
    for check in read_checks(source):
        if check.kind == "NOT":
            pending.append(check)
            continue
        found = _find(check, text, position, names)
        _absent(pending, text[position : found.start()], names)
        pending.clear()
        names |= {name: value for name, value in found.groupdict().items() if value is not None}
        position = found.end()
    _absent(pending, text[position:], names)


def _find(check: Check, text: str, position: int, names: dict[str, str]) -> re.Match[str]:
    pattern = _pattern(check, names)
    line_end = text.find("\n", position)
    line_end = len(text) if line_end < 0 else line_end
    if check.kind == "SAME":
        start, stop = position, line_end
    elif check.kind == "NEXT":
        start = min(line_end + 1, len(text))
        stop = text.find("\n", start)
        stop = len(text) if stop < 0 else stop
    else:
        start, stop = position, len(text)
    found = pattern.search(text, start, stop)
    if found is None:
        nearby = "\n".join(text[start:].splitlines()[:6])
        raise CheckFailed(f"line {check.line}: {check.kind}: {check.text!r} was not found from here on:\n{nearby}")
    return found


def _absent(checks: list[Check], text: str, names: dict[str, str]) -> None:
    for check in checks:
        found = _pattern(check, names).search(text)
        if found:
            raise CheckFailed(f"line {check.line}: NOT: {check.text!r} is there: {found[0]!r}")


def _pattern(check: Check, names: dict[str, str]) -> re.Pattern[str]:
    parts, at = [], 0
    text = re.sub(r"[ \t]+", " ", check.text)
    for found in _PART.finditer(text):
        parts.append(re.escape(text[at : found.start()]))
        expression, name, definition, known = found.groups()
        if expression is not None:
            parts.append(f"(?:{expression})")
        elif name is not None:
            parts.append(f"(?P<{name}>{definition})")
        elif known in names:
            parts.append(re.escape(names[known]))
        else:
            raise ValueError(f"line {check.line}: [[{known}]] was not matched before")
        at = found.end()
    return re.compile("".join(parts) + re.escape(text[at:]))
