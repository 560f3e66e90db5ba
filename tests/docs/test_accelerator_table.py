"""The committed table of types and accelerators: a row for each type that compiles, and totals that add up."""

from __future__ import annotations

import re
from pathlib import Path

import tokenspeed

DOCS = Path(tokenspeed.__file__).parent / "docs"
PAGE = (DOCS / "accelerator-table.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in PAGE.splitlines() if line.startswith("| `")]
TITLES = ("a100", "h100, h200", "b200", "mi300x, mi325x", "mi355x")


def test_rows_are_the_types_that_compile() -> None:
    compiled = re.findall(r"^\| `(.+?)` \| (?:raised|fallback) \|", (DOCS / "model-table.md").read_text(), re.MULTILINE)
    assert [row[0].strip("`") for row in ROWS] == compiled


def test_totals_add_up() -> None:
    counts = [sum(row[at] in {"yes", "lowered"} for row in ROWS) for at in range(1, 6)]
    said = ", ".join(f"{title}: {count}" for title, count in zip(TITLES, counts, strict=True))
    assert f"Of {len(ROWS)} types compile, {said}." in PAGE
    assert f"{sum(bool(row[6]) for row in ROWS)} types have some (last column)" in PAGE
