"""Recurrent mixers: modules that carry a state from token to token (Mamba, gated delta nets, short convolutions).

Each is exported by itself as a *step*: one token for each of R rows, with the states of the rows' sequences, to the result and
the new states. In the model it is replaced by one opaque operation, so that the rest of its layer is traced as any other.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.export import ExportedProgram
from transformers import DynamicCache
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from ...plans.errors import ModelError
from .decompositions import DECOMPOSITIONS
from .own_state import MODULE, OwnState, StepOfOwnState, first_values, parts_with_state, watch_state

RECURRENT_SIZES = (
    "mamba_n_heads",
    "mamba_d_head",
    "n_mamba_heads",
    "mamba_headdim",
    "mamba_num_heads",
    "mamba_head_dim",
    "num_heads",
    "mamba_expand",
    "expand",
    "mamba_n_groups",
    "mamba_ngroups",
    "n_groups",
    "mamba_d_state",
    "mamba_d_ssm",
    "state_size",
    "ssm_state_size",
    "linear_num_key_heads",
    "linear_num_value_heads",
    "linear_key_head_dim",
    "linear_value_head_dim",
    "linear_num_heads",
    "linear_head_dim",
    "lru_width",
    "qk_dim_factor",
    "v_dim_factor",
)
"""Sizes of recurrent layers that a config.json may leave to transformers' defaults."""
STEP_ROWS = 1_000_003
"""Rows that steps are exported with: a number that is no size of a model, so that it stands for rows wherever it turns up.
Mapping over rows needs a number, and on the meta device it costs nothing."""
_UPDATES = ("update_conv_state(", "update_recurrent_state(")
"""How a mixer hands its new states to transformers' cache."""

_library = torch.library.Library("tokenspeed", "FRAGMENT")
_library.define("recurrence(Tensor[] rows, int width, int mixer) -> Tensor")


@torch.library.register_fake("tokenspeed::recurrence")
def _shape(rows: list[torch.Tensor], width: int, _mixer: int) -> torch.Tensor:
    return rows[0].new_empty(*rows[0].shape[:2], width)


@dataclass(frozen=True)
class Mixer:
    """A mixer of the traced model: module path, and its step (row inputs [R, 1, ...], then states) -> (result, new states).

    `states` are shape and type of each state for one sequence.
    """

    path: str
    step: ExportedProgram
    inputs: int
    states: tuple[tuple[tuple[int, ...], torch.dtype], ...]


@dataclass
class _Call:
    """How the model calls a mixer: positions and names of the arguments that have tokens, and of the cache."""

    arguments: list[Any]
    keywords: dict[str, Any]
    rows: list[int | str]
    cache: int | str
    result: torch.Tensor


def has_recurrence(model: torch.nn.Module) -> bool:
    return any(map(_is_mixer, model.modules())) or bool(parts_with_state(model))


def extract_mixers(model: Any, config: Any) -> tuple[Mixer, ...]:
    """Export the step of every mixer and put the opaque operation in its place. All on the meta device.

    Raises ModelError for a mixer that cannot be taken out.
    """
    own = parts_with_state(model)
    if own:
        return _extract_with_own_state(model, own)
    found = [(path, module) for path, module in model.named_modules() if _is_mixer(module)]
    calls, held = _record(model, config, found)
    mixers = []
    for number, (path, module) in enumerate(found):
        call = calls.get(path)
        if call is None:
            raise _refusal(path, module, "it is not called once for each token row")
        mixers.append(_exported(path, module, call, held, config))
        _replace(module, call.rows, call.result, 0, number)
    return tuple(mixers)


def _extract_with_own_state(model: Any, found: list[tuple[str, torch.nn.Module]]) -> tuple[Mixer, ...]:
    calls: dict[str, OwnState] = {}
    hooks = [hook for path, module in found for hook in watch_state(module, functools.partial(calls.__setitem__, path))]
    try:
        _run_one_token(model, found[0])
    finally:
        for hook in hooks:
            hook.remove()
    try:
        start = first_values(model)
    except Exception as error:  # whatever the model's own code raises
        raise _refusal(*found[0], f"what its states start from is not found: {type(error).__name__}") from error
    mixers = []
    for number, (path, module) in enumerate(found):
        call = calls.get(path)
        if call is None or not call.rows or not call.states or call.result.ndim != 3:
            raise _refusal(path, module, "states or rows of tokens that are not found")
        first = [0.0 if place[0] == MODULE or not start else start[int(place[-1])] for place in call.places]
        if any(math.isnan(value) for value in first):
            raise _refusal(path, module, "states that start from several numbers")
        states = [*call.states, *([torch.empty(1, 1, device="meta")] if any(first) else [])]
        step = StepOfOwnState(module, call, first)
        exported = _export(path, module, step, (_for_rows([*call.rows.values()]), _for_rows(states)))
        mixers.append(Mixer(path, exported, len(call.rows), tuple((tuple(state.shape[1:]), state.dtype) for state in states)))
        _replace(module, [*call.rows], call.result, call.results, number)
    return tuple(mixers)


def _for_rows(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [torch.empty(STEP_ROWS, *tensor.shape[1:], dtype=tensor.dtype, device="meta") for tensor in tensors]


def _run_one_token(model: torch.nn.Module, first: tuple[str, torch.nn.Module], **held: Any) -> None:
    """Run the model over one token. Raises ModelError, naming its first recurrent part, for what its code raises."""
    token = torch.zeros(1, 1, dtype=torch.long, device="meta")
    try:
        model(input_ids=token, position_ids=token, use_cache=True, **held)
    except ModelError:
        raise
    except Exception as error:  # whatever the model's own code raises
        lines = str(error).strip().splitlines() or [""]
        raise _refusal(*first, f"{type(error).__name__}: {lines[0][:200]}") from error


@cache
def _updates_state(kind: type[torch.nn.Module]) -> bool:
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):
        return False
    return any(update in source for update in _UPDATES)


def _is_mixer(module: torch.nn.Module) -> bool:
    return _updates_state(type(module))


def _refusal(path: str, module: torch.nn.Module, why: str) -> ModelError:
    return ModelError(
        "a recurrent part of the model cannot be run token by token",
        where=f"{path} ({type(module).__name__})",
        expected="a module of one hidden state that keeps its state in transformers' cache",
        got=why,
        fix="choose one of the model types that docs/models.md lists",
    )


def _record(
    model: torch.nn.Module, config: Any, found: list[tuple[str, torch.nn.Module]]
) -> tuple[dict[str, _Call], DynamicCache]:
    """Run the model over one token and note how each mixer is called."""
    held = DynamicCache(config=config)
    calls: dict[str, _Call] = {}

    def watch(path: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, arguments: Any, keywords: Any, result: Any) -> None:
            named: dict[int | str, Any] = {**dict(enumerate(arguments)), **keywords}
            rows = [name for name, value in named.items() if isinstance(value, torch.Tensor) and value.shape[:2] == (1, 1)]
            caches = [name for name, value in named.items() if value is held]
            first = result[0] if isinstance(result, tuple) else result
            if path in calls or len(caches) != 1 or not rows or not isinstance(first, torch.Tensor) or first.ndim != 3:
                raise _refusal(path, module, f"it takes {len(rows)} tensors of tokens and {len(caches)} caches")
            kept: dict[int | str, Any] = {name: None if name in caches else value for name, value in named.items()}
            calls[path] = _Call(
                [kept[at] for at in range(len(arguments))], {name: kept[name] for name in keywords}, rows, caches[0], first
            )

        return hook

    handles = [module.register_forward_hook(watch(path), with_kwargs=True) for path, module in found]
    known = inspect.signature(model.forward).parameters
    name = next((name for name in ("past_key_values", "cache_params") if name in known), "past_key_values")
    try:
        _run_one_token(model, found[0], **{name: held})
    finally:
        for handle in handles:
            handle.remove()
    return calls, held


class _Step(torch.nn.Module):
    """A mixer as a function of one token of each row and the rows' states."""

    def __init__(self, mixer: torch.nn.Module, call: _Call, places: list[tuple[str, int]], layer: int, config: Any) -> None:
        super().__init__()
        self.model = mixer
        self.mapped = True
        self._call, self._places, self._layer, self._config = call, places, layer, config

    def forward(self, rows: list[torch.Tensor], states: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        # mapped over rows, so that code which folds the batch into heads keeps rows apart
        return torch.vmap(self._one)(rows, states) if self.mapped else self._batch(rows, states)

    def _one(self, rows: list[torch.Tensor], states: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """One row [1, ...] with its sequence's states, to the result [1, width] and the new states."""
        out, *new = self._batch([row[None] for row in rows], [state[None] for state in states])
        return out[0], *(state[0] for state in new)

    def _batch(self, rows: list[torch.Tensor], states: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        held = DynamicCache(config=self._config)
        layer: Any = held.layers[self._layer]
        for (kind, number), state in zip(self._places, states, strict=True):
            getattr(layer, f"{kind}_states")[number] = state.clone()
            getattr(layer, f"is_{kind}_states_initialized")[number] = True
            if kind == "conv":
                layer.conv_kernel_size[number] = state.shape[-1]
        layer.has_previous_state = dict.fromkeys(layer.has_previous_state, True)
        layer.dtype, layer.device = states[0].dtype, states[0].device
        arguments, keywords = list(self._call.arguments), dict(self._call.keywords)
        for name, value in [*zip(self._call.rows, rows, strict=True), (self._call.cache, held)]:
            if isinstance(name, int):
                arguments[name] = value
            else:
                keywords[name] = value
        made = self.model(*arguments, **keywords)
        out = made[0] if isinstance(made, tuple) else made
        return out, *(getattr(layer, f"{kind}_states")[number] for kind, number in self._places)


def _exported(path: str, module: torch.nn.Module, call: _Call, held: DynamicCache, config: Any) -> Mixer:
    number = getattr(module, "layer_idx", None)
    layer: Any = held.layers[number] if isinstance(number, int) and number < len(held.layers) else None
    if not isinstance(layer, LinearAttentionCacheLayerMixin):
        raise _refusal(path, module, "its layer has no recurrent cache")
    assert isinstance(number, int)
    places, states = [], []
    for kind in ("conv", "recurrent"):
        for at, state in getattr(layer, f"{kind}_states").items():
            if isinstance(state, torch.Tensor):
                places.append((kind, at))
                states.append(state)
    if not states or any(state.shape[0] != 1 for state in states):
        raise _refusal(path, module, f"its states are {[list(state.shape) for state in states]}, of one sequence")
    given = [*call.arguments, *call.keywords.values()]
    named: dict[int | str, Any] = {**dict(enumerate(call.arguments)), **call.keywords}
    rest = [value for name, value in named.items() if name not in call.rows and isinstance(value, torch.Tensor)]
    if rest or any(isinstance(value, (list, tuple)) for value in given):
        raise _refusal(path, module, "it takes tensors that are not one row for each token")
    rows = [torch.empty(STEP_ROWS, *named[name].shape[1:], dtype=named[name].dtype, device="meta") for name in call.rows]
    examples = [torch.empty(STEP_ROWS, *state.shape[1:], dtype=state.dtype, device="meta") for state in states]
    step = _Step(module, call, places, number, copy.copy(config))
    exported = _export(path, module, step, (rows, examples))
    return Mixer(path, exported, len(rows), tuple((tuple(state.shape[1:]), state.dtype) for state in states))


def _export(path: str, module: torch.nn.Module, step: _Step | StepOfOwnState, given: tuple[Any, ...]) -> ExportedProgram:
    """The step, mapped over rows; as it is where its code cannot be mapped (some writes in place cannot)."""
    try:
        return torch.export.export(step, given, strict=False).run_decompositions(DECOMPOSITIONS)
    except Exception:  # torch.export raises whatever the traced code raises
        step.mapped = False
    try:
        return torch.export.export(step, given, strict=False).run_decompositions(DECOMPOSITIONS)
    except Exception as error:  # as above
        lines = str(error).strip().splitlines() or [""]
        raise _refusal(path, module, f"{type(error).__name__}: {lines[0][:200]}") from error


def _replace(module: torch.nn.Module, rows: list[int | str], result: torch.Tensor, results: int, number: int) -> None:
    """Let the module give back the opaque operation; beside it, as many times None as it gave back states and the like."""
    width = result.shape[-1]

    def forward(*arguments: Any, **keywords: Any) -> Any:
        named: dict[int | str, Any] = {**dict(enumerate(arguments)), **keywords}
        out = torch.ops.tokenspeed.recurrence([named[name] for name in rows], width, number)
        return (out, *[None] * (results - 1)) if results else out

    vars(module)["forward"] = forward
