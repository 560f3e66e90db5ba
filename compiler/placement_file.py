"""Placement files: what `--placement FILE` pins (docs/parallelism.md)."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

import msgspec

from ..ir.placements import parse_shard
from ..passes.placing.pins import CUT, REPLICATE, Pin
from ..plans.errors import UsageError


class _Pin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    module: str
    weight: str = ""
    rows: Literal["", "cut", "replicate"] = ""
    axis: Literal["", "dp", "ep", "tp"] = ""


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pin: tuple[_Pin, ...] = ()


def read_placement(path: Path) -> tuple[Pin, ...]:
    """The pins of a TOML file: tables [[pin]] of `module`, `weight` or `rows`, `axis`. Raises UsageError for anything else."""
    try:
        found = msgspec.convert(tomllib.loads(path.read_text()), _File)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        expected = 'tables [[pin]] with module = "PATTERN" and weight = "PLACEMENT" or rows = "cut", maybe axis = "tp"'
        raise UsageError("this is not a placement file", where=str(path), expected=expected, got=str(error)) from error
    for pin in found.pin:
        if not pin.weight and not pin.rows:
            raise UsageError(
                "a pin says nothing", where=f"{path}, {pin.module}", expected='weight = "..." or rows = "..."', got=""
            )
        if pin.weight not in {"", CUT, REPLICATE} and parse_shard(pin.weight) is None:
            expected = f"{CUT}, {REPLICATE}, or a cut such as shard(0)"
            raise UsageError("there is no such placement", where=f"{path}, {pin.module}", expected=expected, got=pin.weight)
    return tuple(Pin(pin.module, pin.weight, pin.rows, pin.axis) for pin in found.pin)
