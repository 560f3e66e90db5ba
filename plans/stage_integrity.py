"""Whether the stages of a pipeline are a plan's layers, each once, and hand on to each other what they expect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

from .findings import require, require_number, require_shape, require_unique
from .mesh import STAGES
from .program import Program, Repeat
from .schema import Manifest, StagePart
from .stages import RECEIVE, SEND, crossings_of


def check_stages(manifest: Manifest) -> None:
    """Raise `PlanError`, naming the field, unless the stages are sound together. What each says of itself is checked on its own
    (plans/integrity.py, on the manifest of plans/stages.py)."""
    sizes = {axis.name: axis.size for axis in manifest.mesh}
    along, count = sizes.get(STAGES, 1), len(manifest.stages)
    require(along == max(1, count) and count != 1, "stages", f"one for each of {along} places on axis {STAGES}", count)
    if not count:
        return
    require(manifest.mesh[0].name == STAGES, "mesh", f"{STAGES} as the outermost axis", [axis.name for axis in manifest.mesh])
    _check_layers(manifest)
    lists = {
        "weights": {item.name: () for item in manifest.weights},
        "groups": {item.name: item.layers for item in manifest.kv.groups},
        "states": {item.name: item.layers for item in manifest.kv.states},
    }
    for weight in manifest.weights:  # layers that differ in a weight's shape have entries of their own
        lists["weights"][weight.name] = (*lists["weights"][weight.name], *weight.layers)
    for field, known in lists.items():
        _check_parts([getattr(stage, field) for stage in manifest.stages], known, f"stages: {field}")
    require(not manifest.stages[0].receives, "stages, 0: receives", "nothing before the first stage", "values")
    require(not manifest.stages[-1].sends, f"stages, {count - 1}: sends", "nothing behind the last stage", "values")
    for number, (stage, following) in enumerate(pairwise(manifest.stages)):
        where = f"stages, {number + 1}: receives"
        require(bool(stage.sends), f"stages, {number}: sends", "at least one value", "none")
        require(stage.sends == following.receives, where, f"what stage {number} sends: {stage.sends}", following.receives)
        require_unique((item.name for item in stage.sends), f"stages, {number}: sends")
        for item in stage.sends:
            require_shape(item.shape, f"stages, {number}: sends, {item.name}")
    largest = max((stage.memory for stage in manifest.stages), key=lambda memory: memory.total)
    require(manifest.memory == largest, "memory", f"that of the largest stage, {largest.total} bytes", manifest.memory.total)


def check_crossings(manifest: Manifest, stage: int, program: Program, where: str) -> None:
    """A step program sends and receives what its stage says, in that order."""
    inside = [call.function for item in program.body if isinstance(item, Repeat) for call in item.body]
    require(not {*inside} & {SEND, RECEIVE}, f"{where}: body", "nothing that crosses stages inside of layers", sorted({*inside}))
    for call in program.calls:
        if call.function in {SEND, RECEIVE}:
            at, axis = f"{where}, {call.function}", call.attributes.get("axis")
            counts = (len(call.inputs), len(call.outputs))
            require(counts == ((1, 0) if call.function == SEND else (0, 1)), at, "one value", counts)
            require(axis == STAGES, f"{at}: axis", STAGES, axis)
    of_stage = manifest.stages[stage] if manifest.stages else None
    for function, expected in ((SEND, of_stage and of_stage.sends), (RECEIVE, of_stage and of_stage.receives)):
        found = crossings_of(program, function)
        require(found == (expected or ()), f"{where}: {function}", list(expected or ()), found)


def _check_layers(manifest: Manifest) -> None:
    behind = 0
    for number, stage in enumerate(manifest.stages):
        require(stage.first == behind, f"stages, {number}: first", f"layer {behind}, behind the stage before", stage.first)
        require_number(stage.layers, f"stages, {number}: layers", 1)
        behind += stage.layers
    require(behind == manifest.model.layers, "stages", f"{manifest.model.layers} layers in all", behind)


def _check_parts(parts: Sequence[Sequence[StagePart]], known: Mapping[str, tuple[int, ...]], where: str) -> None:
    """The stages' parts are all of what is known: of each name every layer once; what has no layers at least once."""
    for number, of_stage in enumerate(parts):
        require_unique((part.name for part in of_stage), f"{where} of stage {number}")
        for part in of_stage:
            at = f"{where} of stage {number}, {part.name}"
            require(part.name in known, at, "a name that the manifest lists", repr(part.name))
            ascending = all(one < other for one, other in pairwise(part.layers))
            require(ascending, f"{at}: layers", "ascending layers", part.layers)
            require(bool(part.layers) == bool(known[part.name]), f"{at}: layers", f"some of {known[part.name]}", part.layers)
    for name, layers in known.items():
        found = Counter(layer for of_stage in parts for part in of_stage if part.name == name for layer in part.layers)
        require(found == Counter({*layers}), f"{where}, {name}", "each layer in one stage", dict(found))
        there = any(part.name == name for of_stage in parts for part in of_stage)
        require(there, f"{where}, {name}", "a stage that has it", "none")
