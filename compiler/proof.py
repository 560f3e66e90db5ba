"""The proof of raising and fusion: a miniature of the model, as transformers runs it and as `ts`, must give the same logits.

Every layer kind takes part, in float32, on random weights, a sequence longer than the miniature's window beside a shorter one,
whole and in chunks. What is compared with is the eager model itself, so that tracing is proved too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..ir import module as modules
from ..ir.arrangement import arranged, arrangement_of
from ..ir.mlir import ir
from ..ir.reference import Interpreter, StepRows
from ..plans.errors import ModelError
from ..plans.template import instantiate
from .eager import eager_logits
from .frontends.causality import Mask
from .frontends.import_aten import import_model
from .frontends.trace import TracedModel, trace
from .miniature import PADDING, VOCABULARY, miniature

TOKENS = (24, 9)
TOLERANCE = 1e-4

# each step: (sequence, first position, end)
_WHOLE = (((0, 0, 24),), ((1, 0, 9),))
_IN_PIECES = (((0, 0, 7), (1, 0, 3)), ((1, 3, 4), (0, 7, 19)), ((0, 19, 20), (1, 4, 5)), ((1, 5, 9), (0, 20, 24)))

_UNCOMPARED = {
    "arguments",
    "reason",
    "scale",
    "window",
    "start",
    "label",
    "parameters",
    "sym",
    "first",
    "count",
    "stride",
    "layer",
    "kv_heads",
    "top_k",
    "groups",
    "top_groups",
}
# a factor may be made of a size; when a cast comes means nothing in float32, the miniature's type
_UNCOMPARED |= {"factor", "cast_before_weight"}


def prove(traced: TracedModel, raised: ir.Module, transform: Callable[[ir.Module], ir.Module]) -> float:
    """Prove that `transform` (ATen module to raised module) is right for this model; gives back the largest difference.

    The miniature must raise to the same operations as the model itself, and give the logits of transformers' eager model.
    The values of the model's own constants are beyond it: the miniature has others, of its own sizes. So constants are taken
    only where transformers fills them whatever was in memory before when it loads a model, and refused elsewhere.
    Raises ModelError otherwise.
    """
    small_config = miniature(traced.config, traced.kinds)
    small = trace(small_config, "f32", context=traced.context)
    small_module = transform(import_model(small))
    wanted, got = signature(raised), signature(small_module)
    if wanted != got:
        different = next((pair for pair in zip(wanted, got, strict=False) if pair[0] != pair[1]), (len(wanted), len(got)))
        raise ModelError(
            "the miniature used to prove the model raises to other operations than the model",
            where=traced.architecture,
            expected=str(different[0]),
            got=str(different[1]),
        )
    difference = _difference(small, small_module, small.mask)
    if not difference <= TOLERANCE and small.mask == "none":
        with contextlib.suppress(ModelError):  # a model that takes no mask
            difference = min(difference, _difference(small, small_module, "open"))
    if not difference <= TOLERANCE:
        raise ModelError(
            f"the raised {traced.architecture} does not compute what the model computes",
            where="proof on a miniature in float32",
            expected=f"largest logit difference <= {TOLERANCE}",
            got=f"{difference:.3g}",
            fix="report this model; it would have given wrong answers",
        )
    return difference


def signature(module: ir.Module) -> list[tuple[str, tuple[str, ...]]]:
    """Operation names with the attributes that do not depend on sizes, repeats' bodies once each.

    Casts are left out: a model in another type than the miniature's has casts where the miniature has none.
    """
    found: list[tuple[str, tuple[str, ...]]] = []
    bodies: set[str] = set()
    for operation in modules.walk(modules.step_block(module)):
        if operation.name == "ts.repeat":
            inner = [_mark(inside) for inside in modules.walk(modules.body_of(operation)) if inside.name != "ts.cast"]
            if str(inner) not in bodies:
                bodies.add(str(inner))
                found.extend(inner)
        elif operation.parent is not None and operation.parent.name != "ts.repeat" and operation.name != "ts.cast":
            found.append(_mark(operation))
    return found


def _mark(operation: ir.Operation) -> tuple[str, tuple[str, ...]]:
    attributes = (f"{name}={operation.attributes[name]}" for name in operation.attributes if name not in _UNCOMPARED)
    return operation.name, tuple(sorted(attributes))


class _TensorWeights:
    """Weights of a module by name: joined from random parameters."""

    def __init__(self, joined: WeightParts, parameters: dict[str, Tensor]) -> None:
        self.joined, self.parameters = joined, parameters

    def full(self, name: str) -> Tensor:
        parts, steps = self.joined[name]
        made = [arranged(self.parameters[part], steps) for part in parts]
        return torch.cat(made) if len(made) > 1 else made[0]  # scalars cannot be joined

    def linear(self, x: Tensor, name: str, index: int | None = None) -> Tensor:
        return x @ (self.full(name) if index is None else self.part(name, index)).T

    def rows(self, name: str, index: Tensor) -> Tensor:
        return self.full(name)[index]

    def part(self, name: str, index: int) -> Tensor:
        parts, steps = self.joined[name]
        if len(parts) > 1:
            return self.full(name)[index]
        return arranged(self.parameters[parts[0]][index : index + 1], steps)[0]


WeightParts = dict[str, tuple[list[str], list[str]]]
"""Parameters that a weight joins, and how each is arranged before."""


def weight_parts(module: ir.Module) -> WeightParts:
    """Every weight instance by name, layer indices filled in."""
    parts: WeightParts = {}

    def visit(block: ir.Block, indices: range) -> None:
        for view in block.operations:
            operation = view.operation
            if operation.name == "ts.weight":
                for index in indices:
                    name = instantiate(modules.text_attribute(operation, "sym"), index)
                    joined = [instantiate(part, index) for part in modules.text_list(operation, "parameters")]
                    parts[name] = joined, arrangement_of(operation)
            elif operation.name == "ts.repeat":
                first, count = modules.int_attribute(operation, "first"), modules.int_attribute(operation, "count")
                stride = modules.int_attribute(operation, "stride")
                visit(modules.body_of(operation), range(first, first + count * stride, stride))

    visit(modules.step_block(module), range(1))
    return parts


def _random_parameters(traced: TracedModel) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(20261)
    made = {}
    for name, shape in traced.parameters.items():
        spread = shape[-1] ** -0.5 if len(shape) > 1 else 0.3
        centre = 1.0 if len(shape) == 1 and "norm" in name else 0.0
        made[name] = centre + spread * torch.randn(shape, generator=generator)
    return made


def _difference(traced: TracedModel, module: ir.Module, mask: Mask) -> float:
    """Two sequences against transformers' own eager model: each whole, then both packed and in chunks, as they are served.

    transformers' model is given `mask`.
    """
    parameters = _random_parameters(traced)
    generator = torch.Generator().manual_seed(7)
    ids = [torch.randint(PADDING + 1, VOCABULARY, (tokens,), generator=generator) for tokens in TOKENS]
    expected = eager_logits(traced.config, parameters, ids, traced.context, mask)
    weights = _TensorWeights(weight_parts(module), parameters)
    worst = 0.0
    for steps in (_WHOLE, _IN_PIECES):
        interpreter = Interpreter(weights, traced.constants, instantiate, torch.float32)
        for step in steps:
            wanted = torch.cat([expected[key][start:stop] for key, start, stop in step])
            worst = max(worst, float((wanted - interpreter.step(module, _rows(ids, step))).abs().max()))
    return worst


def _rows(ids: Sequence[Tensor], step: Sequence[tuple[int, int, int]]) -> StepRows:
    spans, row = [], 0
    for key, start, stop in step:
        spans.append((key, row, row + stop - start))
        row += stop - start
    tokens = torch.cat([ids[key][start:stop] for key, start, stop in step])
    positions = torch.cat([torch.arange(start, stop) for _, start, stop in step])
    return StepRows(tokens, positions, spans, torch.arange(row))
