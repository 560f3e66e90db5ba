"""How many rows a value has, as a formula of the step's counts: "rows", "logit_rows", and those over or times ranks.

"rows/4" are a rank's rows where four share them, rounded up: the last ranks' end in rows of zeros. "rows*2" are those of two
ranks that have `rows` each. Of the two halves of rows, "rows/2" are the first and "rows//2", rounded down, the second. Formulas
count from left to right.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from . import attributes
from .mlir import ir
from .types import shape_of

ROWS, LOGIT_ROWS = "rows", "logit_rows"

CUTTING, JOINING = {"ts.reduce_scatter", "ts.take_part", "ts.combine"}, {"ts.all_gather", "ts.dispatch"}
"""Collectives whose results have fewer rows, or more, where it is rows that they are about."""


def divided(count: str, ranks: int) -> str:
    """A rank's rows where ranks share them."""
    return count.removesuffix(f"*{ranks}") if count.endswith(f"*{ranks}") else f"{count}/{ranks}"


def multiplied(count: str, ranks: int) -> str:
    """The rows of all ranks, where each has so many; those that fill up the last parts are left out again."""
    return count.removesuffix(f"/{ranks}") if count.endswith(f"/{ranks}") else f"{count}*{ranks}"


def evaluate(count: str, rows: int, logit_rows: int) -> int:
    """The number that a formula stands for."""
    name, *steps = re.split("(//|[*/])", count)
    found = rows if name == ROWS else logit_rows
    for sign, number in zip(steps[::2], map(int, steps[1::2]), strict=True):
        found = {"*": found * number, "/": -(-found // number), "//": found // number}[sign]
    return found


def count_rows(block: ir.Block, known: dict[ir.Value, str] | None = None) -> dict[ir.Value, str]:
    """The formulas of all values of a block, added to those that are known."""
    found = {} if known is None else known
    for view in block.operations:
        operation = view.operation
        if operation.name == "ts.repeat":
            body = operation.regions[0].blocks[0]
            for group in (body.arguments, operation.results):
                found |= {held: found[given] for held, given in zip(group, operation.operands, strict=True)}
            count_rows(body, found)
        else:
            found |= dict.fromkeys(operation.results, rows_after(operation, found))
    return found


def rows_worked_on(operation: ir.Operation, counts: Mapping[ir.Value, str], rows: int, logit_rows: int) -> int:
    """How many rows an operation works on in a step; of one that joins rows or shares them out, all of them."""
    values = operation.results if operation.name == "ts.gather_rows" else (*operation.operands, *operation.results)
    found = [evaluate(counts[value], rows, logit_rows) for value in values if None in shape_of(value)]
    return max(found, default=rows)


def rows_after(operation: ir.Operation, known: Mapping[ir.Value, str]) -> str:
    """The formula of an operation's results, given those of its operands; where none has rows it says rows."""
    if operation.name == "ts.input":
        return LOGIT_ROWS if attributes.text_attribute(operation, "sym") == LOGIT_ROWS else ROWS
    if operation.name == "ts.receive" and "rows" in operation.attributes:  # what another stage of a pipeline made
        return attributes.text_attribute(operation, "rows")
    if operation.name == "ts.gather_rows":
        return known.get(operation.operands[1], LOGIT_ROWS)
    found = next((known[value] for value in operation.operands if None in shape_of(value) and value in known), ROWS)
    if operation.name == "ts.take_rows":
        return f"{found}//2" if attributes.int_attribute(operation, "half") else f"{found}/2"
    if operation.name == "ts.join_rows":
        return found.removesuffix("/2")
    if operation.name in CUTTING | JOINING and attributes.int_attribute(operation, "dimension") == 0:
        ranks = attributes.int_attribute(operation, "ranks")
        return divided(found, ranks) if operation.name in CUTTING else multiplied(found, ranks)
    return found
