"""Candidates built on a machine with Triton, and what was measured of them on one with a device: what travels between the two."""

from __future__ import annotations

from pathlib import Path

import msgspec
from tokenspeed.targets.triton.measured_tiles import Receipt

from .bundle import BuiltCase

CANDIDATES, RESULTS = "candidates.json", "measurements.json"

Sizes = dict[str, int | str]
"""Fields of a kind of tiles (targets/triton/measured_tiles.py)."""


class Candidate(msgspec.Struct, frozen=True):
    """A case of so many rows, built with some tiles."""

    tiles: Sizes
    built: BuiltCase


class Candidates(msgspec.Struct, frozen=True):
    """Of each case by name. `dropped` did not fit the device or did not compile: (case, tiles, why)."""

    architecture: str
    triton: str
    of_case: dict[str, list[Candidate]]
    dropped: list[tuple[str, Sizes, str]]


class Measurement(msgspec.Struct, frozen=True):
    """Seconds of a case with some tiles, and the largest error against float64 as a share of the largest result."""

    tiles: Sizes
    seconds: float
    error: float


class MeasuredCase(msgspec.Struct, frozen=True):
    """The fastest first. `bound` is the least that the receipt's rates allow, `rival` a library's seconds (None: there is none);
    `wrong` gave other numbers than the reference and were not timed."""

    case: str
    bound: float
    rival: float | None
    measurements: list[Measurement]
    wrong: list[Measurement]


class Measurements(msgspec.Struct, frozen=True):
    architecture: str
    triton: str
    receipt: Receipt
    cases: list[MeasuredCase]


def read_candidates(folder: Path) -> Candidates:
    return msgspec.json.decode((folder / CANDIDATES).read_bytes(), type=Candidates)


def read_measurements(path: Path) -> Measurements:
    return msgspec.json.decode(path.read_bytes(), type=Measurements)
