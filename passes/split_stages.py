"""split: the step as programs of a pipeline's stages, which send on what crosses the borders between them.

Layers are cut between rounds of their repeats. Values that need no weights, such as tables of rope, are made on each stage that
reads them; all others that are alive at a border are sent on in the order in which they are made, those that a stage only passes
on included. Weights that several stages read (tied embeddings) are read by each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, inf

from ..ir import module as modules
from ..ir import rank_operations
from ..ir.mlir import func, ir
from ..ir.rows import ROWS, count_rows
from ..ir.sharding import COLLECTIVES
from ..ir.types import shape_of
from ..plans.mesh import STAGES
from ..plans.template import instantiate
from .layer_units import repeats_of, top_of, units

_LEAVES = {"ts.input", "ts.weight", "ts.constant"}
_CACHED = {"ts.attention", "ts.latent_attention", "ts.recurrence", "ts.rope_kv_write", "ts.cached_attention"}

Made = tuple[int, int]
"""A value by the operation of the step's block that makes it and the number of its result."""


def split_stages(module: ir.Module, cuts: Sequence[int]) -> tuple[ir.Module, ...]:
    """A module for each stage; the given one stays as it is. `cuts` are the numbers of layer units (passes/layer_units.py) before
    each border, ascending, none of them in `joined`.

    Without cuts the module itself is the only stage.
    """
    if not cuts:
        return (module,)
    whole = modules.parse(str(module))
    _cut_repeats(modules.step_block(whole), cuts)
    text = str(whole)
    stage_of = _stages(modules.step_block(whole), cuts)
    crossing = [_crossing(modules.step_block(whole), stage_of, border) for border in range(1, len(cuts) + 1)]
    return tuple(_stage(text, stage_of, number, ([], *crossing, [])) for number in range(len(cuts) + 1))


def joined(module: ir.Module) -> dict[int, str]:
    """Cuts that may not be made, with the layer: what stores a cache and what reads it stay in one stage."""
    block = modules.step_block(module)
    places: dict[str, list[float]] = {}
    for operation in modules.walk(block):
        if operation.name in _CACHED:
            for layer, place in _places(operation, block):
                places.setdefault(layer, []).append(place)
    last = len(units(block))
    between = {layer: range(ceil(min(found)), ceil(min(max(found), last))) for layer, found in places.items()}
    return {cut: layer for layer, cuts in between.items() for cut in cuts}


def _places(operation: ir.Operation, block: ir.Block) -> Iterator[tuple[str, float]]:
    """The layers whose caches an operation uses, each with where that is: a cut is between two places if its number is."""
    template, passed = modules.text_attribute(operation, "layer"), 0
    repeats = repeats_of(block)
    top = top_of(operation)
    for view in block.operations:
        if view.operation == top:
            break
        passed += modules.int_attribute(view.operation, "count") if view.operation in repeats else 0
    if top in repeats:
        first, count, stride = (modules.int_attribute(top, name) for name in ("first", "count", "stride"))
        for turn in range(count):
            yield instantiate(template, first + turn * stride), passed + turn + 0.5
    else:
        yield template, passed - 0.5 if passed < len(units(block)) else inf


def _cut_repeats(block: ir.Block, cuts: Sequence[int]) -> None:
    """Repeats that lie across a border become one for each side, in place."""
    before = 0
    for repeat in repeats_of(block):
        first, count, stride = (modules.int_attribute(repeat, name) for name in ("first", "count", "stride"))
        inside = sorted(cut - before for cut in cuts if before < cut < before + count)
        before += count
        if not inside:
            continue
        values = list(repeat.operands)
        for start, stop in zip([0, *inside], [*inside, count], strict=True):
            with ir.InsertionPoint(repeat):
                piece = repeat.clone()
            for at, value in enumerate(values):
                piece.operands[at] = value
            piece.attributes["first"] = modules.integer(first + start * stride)
            piece.attributes["count"] = modules.integer(stop - start)
            values = list(piece.results)
        for result, value in zip(repeat.results, values, strict=True):
            result.replace_all_uses_with(value)
        repeat.erase()


def _stages(block: ir.Block, cuts: Sequence[int]) -> list[int]:
    """The stage of each operation of the block, whose repeats end at the borders."""
    found: list[int] = []
    passed = 0
    for view in block.operations:
        if view.operation.name == "ts.repeat":
            found.append(sum(cut <= passed for cut in cuts))
            passed += modules.int_attribute(view.operation, "count")
        else:
            # what stands between the layers of two stages belongs to the first of them
            found.append(sum(cut < passed for cut in cuts) if passed < len(units(block)) else len(cuts))
    return found


def _crossing(block: ir.Block, stage_of: Sequence[int], border: int) -> list[Made]:
    """Values that are made before the border and read behind it, but for those that are made again."""
    operations = [view.operation for view in block.operations]
    place = {operation: at for at, operation in enumerate(operations)}
    found: list[Made] = []
    for at, operation in enumerate(operations):
        if stage_of[at] >= border:
            continue
        for number, result in enumerate(operation.results):
            readers = {place[top_of(reader)] for reader, _ in modules.readers_of(result)}
            if any(stage_of[reader] >= border for reader in readers) and not _is_made_again(result):
                found.append((at, number))
    return found


def _is_made_again(value: ir.Value) -> bool:
    """Whether each stage makes the value for itself: nothing it comes from reads weights, but weights' own arithmetic."""
    maker = modules.made_by(value)
    if maker.name in _LEAVES:
        return True
    if maker.name in {"ts.repeat", *_CACHED} or maker.name in COLLECTIVES or not all(map(_is_made_again, maker.operands)):
        return False
    of_weights = any(modules.made_by(operand).name == "ts.weight" for operand in maker.operands)
    return not of_weights or None not in shape_of(value)


@dataclass(frozen=True)
class _Ends:
    """What a stage receives and what it sends."""

    received: Sequence[Made]
    sent: Sequence[Made]


def _stage(text: str, stage_of: Sequence[int], number: int, crossing: Sequence[list[Made]]) -> ir.Module:
    module = modules.parse(text)
    block = modules.step_block(module)
    operations = [view.operation for view in block.operations]
    ends = _Ends(crossing[number], crossing[number + 1])
    values = {made: operations[made[0]].results[made[1]] for made in {*ends.received, *ends.sent}}
    counts = count_rows(block)
    with ir.InsertionPoint.at_block_begin(block):
        for at, made in enumerate(ends.received):
            received = rank_operations.Receive(values[made].type, modules.text(_name(at)), modules.text(STAGES))
            modules.set_label(received.operation, modules.label_of(operations[made[0]]))
            if counts[values[made]] != ROWS:
                received.operation.attributes["rows"] = modules.text(counts[values[made]])
            values[made].replace_all_uses_with(received.res)
            values[made] = received.res
    if number < max(stage_of):
        _send_on(block, [(values[made], modules.label_of(operations[made[0]])) for made in ends.sent])
        operations = operations[:-1]
    for at in reversed(range(len(operations))):
        if stage_of[at] != number and not all(map(_is_made_again, operations[at].results)):
            operations[at].erase()
    modules.erase_unused(block)
    modules.retype(block)
    modules.verify(module)
    return module


def _name(at: int) -> str:
    """Of the value that crosses a border in that place: on both sides the same, and the same in stages that are alike."""
    return f"value{at}"


def _send_on(block: ir.Block, values: Sequence[tuple[ir.Value, str]]) -> None:
    """The block ends in sending these, each with its label, and returns nothing."""
    terminator = list(block.operations)[-1].operation
    with ir.InsertionPoint(terminator):
        for at, (value, label) in enumerate(values):
            modules.set_label(rank_operations.Send(value, modules.text(_name(at)), modules.text(STAGES)).operation, label)
        func.ReturnOp([])
    terminator.erase()
