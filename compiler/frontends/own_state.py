"""Recurrent parts whose state is not in transformers' cache, as steps f(rows, states) -> (result, new states).

A state may be an argument that the part gives back, hang in attributes of its modules, or lie in a cache class of the model's
own. All are found in one way: the tensors that the part changes or makes while it handles one token, wherever they hang.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

Path = tuple[str | int, ...]
"""From a part's call to a tensor: name of the argument, or `MODULE`; then attributes, keys and positions."""

MODULE = "module"
_OWN_CACHE = ("set_linear_cache(",)
"""How parts hand their state to cache classes of the model's own."""
_ARGUMENT = "state"
"""What parts call a state that they are given and give back."""
_NUMBER = "layer_id"
"""A part's number, where a tensor holds the states of all layers along its last dimension."""
_FEWEST = 3
"""Tensors of a state that is an argument; two are the sines and cosines of positions."""


_IN_ONE_PIECE = {"rescale_every": 0, "max_inference_chunksize": 1 << 62}
"""Settings that leave what is computed as it is, but for rounding: halving hidden states every few layers, which needs the
weights halved too, and cutting long texts in pieces."""


def run_in_one_piece(config: Any) -> None:
    """Turn off what a model does between layers, or to the whole text, only to spare range or memory."""
    for name, value in _IN_ONE_PIECE.items():
        if hasattr(config, name):
            setattr(config, name, value)


def parts_with_state(model: torch.nn.Module) -> list[tuple[str, torch.nn.Module]]:
    """The innermost parts that keep a state of their own, or what is around several of them: a layer has one recurrence."""
    taking = [(path, module) for path, module in model.named_modules() if _handles_state(type(module))]
    inner = {path: len(_innermost(module)) for path, module in taking}
    found = [(path, module) for path, module in taking if inner[path] > 1 or _innermost(module) == [module]]
    around = [f"{path}." for path, _ in found]
    return [(path, module) for path, module in found if not path.startswith(tuple(around))]


def _innermost(part: torch.nn.Module) -> list[torch.nn.Module]:
    """Parts with a state, the part itself among them, that have no other inside."""
    taking = [module for module in part.modules() if _handles_state(type(module))]
    return [module for module in taking if not any(_handles_state(type(other)) for other in [*module.modules()][1:])]


@cache
def _handles_state(kind: type[torch.nn.Module]) -> bool:
    if issubclass(kind, PreTrainedModel) or not kind.__module__.startswith("transformers.models."):
        return False
    if hasattr(kind, "_setup_cache") or _ARGUMENT in inspect.signature(kind.forward).parameters:
        return True
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):
        return False
    return any(update in source for update in _OWN_CACHE)


@dataclass
class OwnState:
    """How a part is called and where its states are; `results` is how many things it gives back, 0 for one alone."""

    arguments: dict[int | str, Any]
    rows: dict[int | str, Tensor]
    places: list[Path]
    states: list[Tensor]
    result: Tensor
    results: int
    by_layer: bool


def watch_state(module: torch.nn.Module, note: Callable[[OwnState], None]) -> list[Any]:
    """Have `note` told how the part is called, on the meta device, for one token. Gives back hooks to remove."""
    before: dict[Path, tuple[Tensor, int]] = {}

    def enter(_module: torch.nn.Module, arguments: Any, keywords: Any) -> None:
        before.update((path, (value, value._version)) for path, value in _held(module, _named(arguments, keywords)))

    def leave(_module: torch.nn.Module, arguments: Any, keywords: Any, result: Any) -> None:
        named = _named(arguments, keywords)
        found = [(path, value) for path, value in _held(module, named) if _differs(before.get(path), value)]
        several = isinstance(result, tuple)
        if several and not found and is_state(result[1]):  # what it was given is left as it was
            name = next(name for name, value in named.items() if is_state(value))
            found = [((name, at), value) for at, value in enumerate(result[1])]
        by_layer = all(hasattr(part, _NUMBER) for part in _innermost(module)) and all(value.ndim == 3 for _, value in found)
        note(
            OwnState(
                {name: copy.deepcopy(value) if _may_hold(value) else _of_all_rows(value) for name, value in named.items()},
                {name: value for name, value in named.items() if isinstance(value, Tensor) and value.shape[:2] == (1, 1)},
                [path for path, _ in found],
                [value[..., :1] if by_layer else value for _, value in found],
                result[0] if several else result,
                len(result) if several else 0,
                by_layer,
            )
        )

    return [
        module.register_forward_pre_hook(enter, with_kwargs=True),
        module.register_forward_hook(leave, with_kwargs=True),
    ]


class StepOfOwnState(torch.nn.Module):
    """A part as a function of one token of each row and the rows' states.

    `first` are the numbers that states start from; if any is not zero, the last state tells rows whose sequence has begun.
    """

    def __init__(self, part: torch.nn.Module, own: OwnState, first: Sequence[float]) -> None:
        super().__init__()
        self.model = part
        self.mapped = True
        self._own, self._first = own, first

    def forward(self, rows: list[Tensor], states: list[Tensor]) -> tuple[Tensor, ...]:
        # mapped over rows, so that code which folds the batch into heads keeps rows apart
        return torch.vmap(self._one)(rows, states) if self.mapped else self._batch(rows, states)

    def _one(self, rows: list[Tensor], states: list[Tensor]) -> tuple[Tensor, ...]:
        out, *new = self._batch([row[None] for row in rows], [state[None] for state in states])
        return out[0], *(state[0] for state in new)

    def _batch(self, rows: list[Tensor], states: list[Tensor]) -> tuple[Tensor, ...]:
        if not any(self._first):
            return call_with_state(self.model, self._own, rows, states)
        *kept, begun = states
        starting = [
            torch.where(begun.reshape(-1, *[1] * (state.ndim - 1)) > 0, state, number) if number else state
            for state, number in zip(kept, self._first, strict=True)
        ]
        return *call_with_state(self.model, self._own, rows, starting), torch.ones_like(begun)


def call_with_state(
    module: torch.nn.Module, own: OwnState, rows: Sequence[Tensor], states: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The part's result for one token of each row, and the rows' new states."""
    roots: dict[int | str, Any] = {**own.arguments, **dict(zip(own.rows, rows, strict=True)), MODULE: module}
    for path, state in zip(own.places, states, strict=True):
        roots[path[0]] = _replaced(roots[path[0]], path[1:], state.clone())
    positional = sorted(name for name in own.arguments if isinstance(name, int))
    keywords = {name: roots[name] for name in own.arguments if isinstance(name, str)}
    numbered = _innermost(module) if own.by_layer else []
    numbers = [getattr(part, _NUMBER) for part in numbered]
    try:
        for part in numbered:
            setattr(part, _NUMBER, 0)
        made = module(*(roots[at] for at in positional), **keywords)
        if isinstance(made, tuple) and is_state(made[1]):
            return made[0], *(made[1][int(path[1])] for path in own.places)
        out = made[0] if isinstance(made, tuple) else made
        return out, *(_found(roots[path[0]], path[1:]) for path in own.places)
    finally:
        for part, number in zip(numbered, numbers, strict=True):
            setattr(part, _NUMBER, number)
        for path in own.places:
            if path[0] == MODULE:  # no tensor of a trace stays in an attribute
                _replaced(module, path[1:], None)


class _ReachedError(Exception):
    """The first part that takes a state has been called with `state`."""

    def __init__(self, state: Sequence[Tensor]) -> None:
        super().__init__()
        self.state = state


def first_values(model: PreTrainedModel) -> list[float]:
    """The number that each tensor of a state starts from which parts take as an argument; [] where the model has none."""

    def enter(_module: torch.nn.Module, arguments: Any, keywords: Any) -> None:
        raise _ReachedError(next(value for value in _named(arguments, keywords).values() if is_state(value)))

    taking = [part for part in model.modules() if _ARGUMENT in _arguments(part)]
    if not taking:
        return []
    handles = [part.register_forward_pre_hook(enter, with_kwargs=True) for part in taking]
    embedding: Any = model.get_input_embeddings()
    try:
        # on the CPU, where numbers have values: no parameter takes part before the first layer
        model.base_model(inputs_embeds=torch.zeros(1, 1, embedding.weight.shape[1]), use_cache=True)
    except _ReachedError as reached:
        values = [value.unique() for value in reached.state]
        return [float(value) if value.numel() == 1 else float("nan") for value in values]
    finally:
        for handle in handles:
            handle.remove()
    return []


def _arguments(module: torch.nn.Module) -> Any:
    kept = isinstance(module, PreTrainedModel) or not type(module).__module__.startswith("transformers.models.")
    return () if kept else inspect.signature(module.forward).parameters


def is_state(value: Any) -> bool:
    """Whether an argument or a result is a state: several tensors."""
    return isinstance(value, (tuple, list)) and len(value) >= _FEWEST and all(isinstance(item, Tensor) for item in value)


def _named(arguments: Any, keywords: Any) -> dict[int | str, Any]:
    return {**dict(enumerate(arguments)), **keywords}


def _differs(before: tuple[Tensor, int] | None, value: Tensor) -> bool:
    return before is None or before[0] is not value or before[1] != value._version


def _of_all_rows(value: Any) -> Any:
    """An argument as steps are given it: what has tensors comes with the rows, or is left out."""
    return None if isinstance(value, (Tensor, tuple, list, dict)) else value


def _may_hold(value: Any) -> bool:
    """Whether states may hang on an argument."""
    return is_state(value) or _is_cache(value)


def _is_cache(value: Any) -> bool:
    kept = isinstance(value, (Tensor, PretrainedConfig, torch.nn.Module))
    return not kept and hasattr(value, "__dict__") and type(value).__module__.startswith("transformers.")


def _held(module: torch.nn.Module, named: dict[int | str, Any]) -> Iterator[tuple[Path, Tensor]]:
    """Tensors that hang on the call's arguments, and those in attributes of the part's modules."""
    for name, value in named.items():
        if _may_hold(value):
            yield from _inside(value, (name,))
    for path, inner in module.named_modules():
        for name, value in vars(inner).items():
            if isinstance(value, Tensor):
                yield (MODULE, *filter(None, path.split(".")), name), value


def _inside(value: Any, path: Path) -> Iterator[tuple[Path, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
        return
    parts: Any = enumerate(value) if isinstance(value, (list, tuple)) else ()
    if isinstance(value, dict) or _is_cache(value):
        parts = (value if isinstance(value, dict) else vars(value)).items()
    for name, item in parts:
        yield from _inside(item, (*path, name))


def _found(root: Any, path: Path) -> Any:
    for step in path:
        key: Any = step
        root = root[key] if isinstance(root, (list, tuple, dict)) else getattr(root, key)
    return root


def _replaced(root: Any, path: Path, value: Any) -> Any:
    """`root` with the tensor at `path` replaced: modules are changed, all else is copied."""
    if not path:
        return value
    step: Any = path[0]
    if isinstance(root, tuple):
        return tuple(_replaced(item, path[1:], value) if at == step else item for at, item in enumerate(root))
    changed: Any = root if isinstance(root, torch.nn.Module) else copy.copy(root)
    if isinstance(changed, (list, dict)):
        changed[step] = _replaced(changed[step], path[1:], value)
    else:
        setattr(changed, step, _replaced(getattr(changed, step), path[1:], value))
    return changed
