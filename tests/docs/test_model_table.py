"""The committed model table: a row for every causal LM type of the installed transformers, and totals that add up."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import tokenspeed
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

TABLE = (Path(tokenspeed.__file__).parent / "docs" / "model-table.md").read_text()
ROWS = re.findall(r"^\| `(.+?)` \| (\w+) \| (.*) \|$", TABLE, re.MULTILINE)


def test_rows_are_the_types_of_the_installed_transformers() -> None:
    assert f"transformers {transformers.__version__}" in TABLE
    assert [name for name, _, _ in ROWS] == sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def test_totals_add_up() -> None:
    totals = Counter(status for _, status, _ in ROWS)
    assert totals.keys() <= {"raised", "fallback", "refused"}
    compiled = totals["raised"] + totals["fallback"]
    assert f"{compiled} of {len(ROWS)} types compile" in TABLE
    assert f"{totals['raised']} raised, {totals['fallback']} with fallbacks; {totals['refused']} refused" in TABLE


def test_whatever_is_not_raised_has_a_reason() -> None:
    assert [name for name, status, reason in ROWS if status != "raised" and not reason.strip()] == []
