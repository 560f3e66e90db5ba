"""What changed from one plan to another: fields of the manifest, decisions, and entries, in that order."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec
from rich.console import RenderableType
from rich.table import Table

from .reader import Plan
from .schema import Decision, Manifest
from .tables import shown

Kind = Literal["added", "removed", "changed"]

# Tuples of structs that have a natural key; compared by it rather than by position.
_KEYS = ("name", "rows")
_SKIPPED = ("entries",)
_PLAIN_KEY = re.compile(r"[\w-]+")


class Change(msgspec.Struct, frozen=True):
    """One difference. `where` is a path such as `memory.arena` or `weights[lm_head.weight].dtype`."""

    section: str
    where: str
    kind: Kind
    before: Any = None
    after: Any = None


def diff_plans(first: Plan, second: Plan) -> list[Change]:
    """Every difference between two plans, empty when they have the same id. Opens no entry but decisions.json."""
    if first.plan_id == second.plan_id:
        return []
    changes = list(_manifest_changes(first.manifest, second.manifest))
    changes += _decision_changes(first.decisions(), second.decisions())
    changes += _entry_changes(first.manifest, second.manifest)
    return changes or [Change("manifest", "manifest.json", "changed", first.plan_id, second.plan_id)]


def pages(changes: list[Change]) -> Iterator[RenderableType]:
    """The changes as one rich table per section."""
    for section in dict.fromkeys(change.section for change in changes):
        table = Table("where", "before", "after", title=section, title_justify="left", box=None, padding=(0, 2, 0, 0))
        for change in changes:
            if change.section == section:
                table.add_row(
                    shown(change.where), _shown(change, "removed", change.before), _shown(change, "added", change.after)
                )
        yield table


def _manifest_changes(first: Manifest, second: Manifest) -> Iterator[Change]:
    before, after = msgspec.to_builtins(first), msgspec.to_builtins(second)
    for section in before:
        if section not in _SKIPPED:
            yield from _compare(section, section, before[section], after[section])


def _compare(section: str, where: str, before: Any, after: Any) -> Iterator[Change]:
    if before == after:
        return
    left, right = _keyed(before), _keyed(after)
    if left is None or right is None:
        yield Change(section, where, "changed", before, after)
        return
    for key in dict.fromkeys([*left, *right]):
        plain = isinstance(before, Mapping) and _PLAIN_KEY.fullmatch(key) is not None
        name = f"{where}.{key}" if plain else f"{where}[{key}]"
        if key not in left:
            yield Change(section, name, "added", None, right[key])
        elif key not in right:
            yield Change(section, name, "removed", left[key], None)
        else:
            yield from _compare(section, name, left[key], right[key])


def _keyed(value: Any) -> dict[str, Any] | None:
    """A map or a list of named things as a dict; None for anything that is compared whole."""
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}
    if not isinstance(value, (list, tuple)):
        return None
    for field in _KEYS:
        if all(isinstance(item, Mapping) and field in item for item in value):
            keyed = {str(item[field]): item for item in value}
            return keyed if len(keyed) == len(value) else None
    return None


def _decision_changes(first: tuple[Decision, ...], second: tuple[Decision, ...]) -> list[Change]:
    return list(_compare("decisions", "decisions", _by_operation(first), _by_operation(second)))


def _by_operation(decisions: tuple[Decision, ...]) -> dict[str, Any]:
    """Decisions by program, rows, operation and label; a number tells apart those that are otherwise alike."""
    found: dict[str, Any] = {}
    for item in decisions:
        key = name = f"{item.program} at {item.rows} rows, {item.operation} {item.label}".rstrip()
        count = 1
        while key in found:
            count += 1
            key = f"{name} #{count}"
        found[key] = msgspec.to_builtins(item)
    return found


def _entry_changes(first: Manifest, second: Manifest) -> list[Change]:
    before = {entry.name: f"{entry.size} bytes, {entry.sha256}" for entry in first.entries}
    after = {entry.name: f"{entry.size} bytes, {entry.sha256}" for entry in second.entries}
    return [
        Change("entries", name, _kind(name in before, name in after), before.get(name), after.get(name))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def _kind(was: bool, now: bool) -> Kind:
    return "changed" if was and now else "removed" if was else "added"


def _shown(change: Change, only: Kind, value: Any) -> str:
    if change.kind not in ("changed", only):
        return ""
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return shown(text if len(text) <= 120 else text[:117] + "...")
