"""What a model's parameters are called in its checkpoints, and how they are made from what lies there.

transformers renames some parameters while it loads, and joins others (each expert is a tensor of its own in most checkpoints,
and one entry of a joint tensor in memory). Its table of conversions is read backwards here: from parameter to tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from transformers import PreTrainedModel, core_model_loading
from transformers.conversion_mapping import get_model_conversion_mapping

from ...plans.errors import ModelError
from ...plans.recipe import Concat, Recipe, Slice, Source, Stack, Transpose, map_sources

Shape = tuple[int, ...]

_TEMPLATE = re.compile(r"\{i(?:\+\d+)?\}")
_STAND_IN = "909090"
"""Stands for a layer's index while names are rewritten: patterns expect digits."""
_ANY = "*"


@dataclass(frozen=True)
class Parts:
    """A parameter as made from checkpoint tensors, and the shape each of those has."""

    recipe: Recipe
    shapes: dict[str, Shape]


@dataclass(frozen=True)
class CheckpointNames:
    """Conversions of one model. `single` are patterns of names whose tensors are in float32 whatever the model's type.

    `moved` are the path of a part that is compiled alone and its path in the whole model, whose checkpoints these are.
    `unequal` are the sizes of the parts that checkpoints store a parameter in where they differ, by its name with `_ANY` for
    numbers. `matrices` are the weights of linear layers and experts, named so too.
    """

    converters: tuple[Any, ...] = ()
    renamings: tuple[Any, ...] = ()
    single: tuple[str, ...] = ()
    moved: tuple[str, str] = ("", "")
    unequal: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    matrices: frozenset[str] = frozenset()

    def is_matrix(self, parameter: str) -> bool:
        """Whether a parameter (a name or a template) is the weight of a linear layer or of experts."""
        return _without_numbers(_TEMPLATE.sub("0", self.moved_name(parameter))) in self.matrices

    def moved_name(self, parameter: str) -> str:
        """What the whole model calls a parameter of the part."""
        here, there = self.moved
        inside = bool(here) and parameter.startswith(f"{here}.")
        return there + parameter.removeprefix(here) if inside else parameter

    def parts(self, parameter: str, shape: Sequence[int]) -> Parts:
        """How the parameter (a name or a template) is made. Raises ModelError for a conversion that is not known here."""
        found = _TEMPLATE.search(parameter)
        name = _TEMPLATE.sub(_STAND_IN, parameter)
        made = self._parts(self.moved_name(name), tuple(shape))
        if found is None:
            return made

        def back(text: str) -> str:
            return text.replace(_STAND_IN, found[0])

        return Parts(
            map_sources(made.recipe, lambda source: Source(back(source.name))),
            {back(name): size for name, size in made.shapes.items()},
        )

    def is_single(self, tensor: str) -> bool:
        return any(re.search(rf"(^|\.){pattern}($|\.)", tensor) for pattern in self.single)

    def _parts(self, name: str, shape: Shape) -> Parts:
        for converter in self.converters:
            matched = converter._scoped_match(name)
            if matched is not None:
                return self._converted(name, shape, converter, matched)
        tensor = self._renamed(name)
        return Parts(Source(tensor), {tensor: shape})

    def _renamed(self, name: str) -> str:
        for renaming in self.renamings:
            name, _ = renaming.rename_source_key(name)
        return name

    def _converted(self, name: str, shape: Shape, reverse: Any, matched: tuple[str | None, str, re.Match[str]]) -> Parts:
        """`reverse` is transformers' conversion for saving: its operations go from the parameter to the tensors."""
        prefix, key, match = matched
        group = next(key for key, value in match.groupdict().items() if value is not None)
        names = [(prefix or "") + key.replace(match[0], target, 1) for target in reverse.target_patterns]
        return _Undo(self, name, names, int(group[1:]), len(reverse.source_patterns)).run([*reverse.operations], shape)


class _Undo:
    """Builds the recipe of one parameter by going through the operations for saving, shapes in hand."""

    def __init__(self, owner: CheckpointNames, parameter: str, names: list[str], position: int, parameters: int) -> None:
        self.owner, self.parameter, self.names = owner, parameter, names
        self.position, self.parameters = position, parameters

    def run(self, operations: list[Any], shape: Shape) -> Parts:
        if not operations:
            if len(self.names) != 1:
                self._refuse("several tensors that nothing joins")
            tensor = self.owner._renamed(self.names[0])
            return Parts(Source(tensor), {tensor: shape})
        first, rest = operations[0], operations[1:]
        match first:
            case core_model_loading.Chunk():
                return self._chunk(first, rest, shape)
            case core_model_loading.SplitModulelist():
                return self._split(first, rest, shape)
            case core_model_loading.Transpose():
                return self._transpose(first, rest, shape)
            case core_model_loading.Concatenate():
                return self._concatenate(first, rest, shape)
            case _:
                return self._refuse(type(first).__name__)

    def _chunk(self, operation: Any, rest: list[Any], shape: Shape) -> Parts:
        """Saving cuts the parameter in parts, equal ones unless the model says otherwise, so loading joins them."""
        dimension, names = operation.dim, self.names
        sizes = self.owner.unequal.get(_without_numbers(self.parameter))
        if sizes is None and shape[dimension] % len(names) == 0:
            sizes = (shape[dimension] // len(names),) * len(names)
        if sizes is None or len(sizes) != len(names) or sum(sizes) != shape[dimension]:
            self._refuse(f"{len(names)} parts of {list(shape)}")
        sized = [_with(shape, dimension, size) for size in sizes]
        parts = [self._of([name]).run(rest, size) for name, size in zip(names, sized, strict=True)]
        return Parts(Concat(tuple(part.recipe for part in parts), dimension), _merged(parts))

    def _split(self, operation: Any, rest: list[Any], shape: Shape) -> Parts:
        """Saving takes a list of modules apart, so loading stacks them."""
        if rest or len(self.names) != 1 or "*" not in self.names[0]:
            self._refuse("a list of modules taken apart in several steps")
        size = (*shape[: operation.dim], *shape[operation.dim + 1 :])
        tensors = [self.owner._renamed(self.names[0].replace("*", str(index))) for index in range(shape[operation.dim])]
        return Parts(Stack(tuple(map(Source, tensors)), operation.dim), dict.fromkeys(tensors, size))

    def _transpose(self, operation: Any, rest: list[Any], shape: Shape) -> Parts:
        if operation.check_dims:
            self._refuse("a transposition that depends on shapes")
        order = list(range(len(shape)))
        a, b = operation.dim0, operation.dim1
        order[a], order[b] = order[b], order[a]
        inner = self.run(rest, tuple(shape[axis] for axis in order))
        return Parts(Transpose(inner.recipe, tuple(order)), inner.shapes)

    def _concatenate(self, operation: Any, rest: list[Any], shape: Shape) -> Parts:
        """Saving joins several parameters in one tensor, so this one is a part of it."""
        dimension, size = operation.dim, shape[operation.dim]
        inner = self._of(self.names).run(rest, _with(shape, dimension, size * self.parameters))
        start = self.position * size
        return Parts(Slice(inner.recipe, dimension, start, start + size), inner.shapes)

    def _of(self, names: list[str]) -> _Undo:
        return _Undo(self.owner, self.parameter, names, 0, 1)

    def _refuse(self, what: str) -> NoReturn:
        raise ModelError(
            "checkpoints of this model store a parameter in a way that is not read yet",
            where=self.parameter.replace(_STAND_IN, "{i}"),
            expected="tensors that are renamed, stacked, joined, cut or transposed",
            got=what,
            fix="save the model with its parameters as the module has them",
        )


def _without_numbers(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", _ANY, name)


def _unequal_convolutions(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Convolutions over queries, keys and values side by side, whose values are of another width."""
    found = {}
    for path, module in model.named_modules():
        widths = [getattr(module, name, None) for name in ("key_dim", "key_dim", "value_dim")]
        convolution = getattr(module, "conv1d", None)
        if isinstance(convolution, torch.nn.Conv1d) and all(isinstance(width, int) for width in widths):
            found[_without_numbers(f"{path}.conv1d.weight")] = tuple(widths)
    return found


def _matrices(model: PreTrainedModel) -> frozenset[str]:
    head = model.get_output_embeddings()
    linear = {
        f"{path}.weight" for path, module in model.named_modules() if type(module) is torch.nn.Linear and module is not head
    }
    stacked = {name for name, parameter in model.named_parameters() if parameter.dim() == 3}
    return frozenset(map(_without_numbers, linear | stacked))


def _with(shape: Shape, dimension: int, size: int) -> Shape:
    return (*shape[:dimension], size, *shape[dimension + 1 :])


def _merged(parts: Sequence[Parts]) -> dict[str, Shape]:
    return {name: shape for part in parts for name, shape in part.shapes.items()}


def checkpoint_names(model: PreTrainedModel) -> CheckpointNames:
    """The conversions transformers applies when it saves the model, in its order."""
    reverse = [item.reverse_transform() for item in get_model_conversion_mapping(model, add_legacy=False)[::-1]]
    reverse = [item for item in reverse if not isinstance(item, core_model_loading.PrefixChange)]
    patterns = [*(model._keep_in_fp32_modules or []), *(model._keep_in_fp32_modules_strict or [])]
    return CheckpointNames(
        tuple(item for item in reverse if isinstance(item, core_model_loading.WeightConverter)),
        tuple(item for item in reverse if not isinstance(item, core_model_loading.WeightConverter)),
        tuple(sorted(set(patterns))),
        unequal=_unequal_convolutions(model),
        matrices=_matrices(model),
    )
