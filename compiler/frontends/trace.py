"""Tracing any causal LM of transformers on the meta device: one layer per distinct kind, no weights, no device.

The whole model is built on meta (no storage), its layers are grouped by fingerprint, one layer per group is kept, and the
rest is exported with a dynamic number of tokens.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from transformers import AutoConfig

from ...plans.errors import ModelError
from .absent_parts import absent_parts_are_empty
from .attention_operation import ATTENTION_NAME, attend
from .causality import Mask, NotCausal, mask_inputs
from .checkpoint_names import CheckpointNames, checkpoint_names
from .chunked_attention import require_one_chunk
from .complex_pairs import complex_as_pairs
from .config_fields import read_field
from .decompositions import DECOMPOSITIONS
from .eager_attention import replace_eager_attention
from .empty_parts import leave_out_empty_parts
from .experts import EXPERTS_NAME, recognise_experts
from .filled_constants import fill_constants
from .frozen_rope import freeze_rope
from .kept_constants import KeptConstants
from .key_biases import give_biases_of_keys
from .language_adapters import choose_language_adapters
from .layer_list import INDEX_LISTS, LayerList, find_layer_list, keep_listed
from .looped_experts import replace_looped_experts
from .model_inputs import token_inputs
from .own_state import run_in_one_piece
from .recurrence import RECURRENT_SIZES, Mixer, extract_mixers, has_recurrence
from .relative_positions import replace_relative_attention
from .selected_keys import leave_out_selection
from .shared_layers import layer_numbers, renumber, shared_parameters
from .sparse_activations import fix_sparsity
from .text_part import maker_of_the_whole, model_maker, names_in_the_whole, text_configuration
from .token_range import export_over_tokens, require_within
from .unfolded import is_unfolded
from .unpackable import refuse_unpackable

TORCH_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
_SCALARS = (bool, int, float, str, type(None))
_CONFIG_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)
"""What transformers raises while it builds a model from a configuration with wrong values."""
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "sliding_window",
    "max_position_embeddings",
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "n_group",
    "topk_group",
    "first_k_dense_replace",
    *RECURRENT_SIZES,
)
"""Fields that a config.json may leave to transformers' defaults."""
_LAYER_NUMBERS = {"layer_idx", "layer_id"}
"""What modules call the number of their layer."""


@dataclass(frozen=True)
class TracedModel:
    """An exported model with one layer per kind. `config` is as given, with sizes that it left out filled in.

    `kinds[i]` is the position in the kept layers of layer i's kind; `layers_path` the module path of the layer list, "" where
    layers are not folded; `parameters` the names and shapes of all that the full model reads from a checkpoint, tied ones once;
    `ties` maps a tied name to the one it shares, and `shared` a name in a kept layer to the one that all layers of its kind
    share; `constants` the values of buffers that no checkpoint holds; `names` says how parameters are called and cut up in
    checkpoints; `context` is the longest sequence that rope was fixed for. `mixers` are the recurrent parts, which the exported
    graph names by position. `mask` is what the model has to be given to be causal. `beside` are paths of lists beside the layer
    list, each with a part of every layer; of such a model each layer is a kind of its own.
    """

    exported: ExportedProgram
    config: dict[str, Any]
    architecture: str
    layers_path: str
    kinds: tuple[int, ...]
    parameters: dict[str, tuple[int, ...]]
    ties: dict[str, str]
    constants: dict[str, torch.Tensor]
    dtype: str
    names: CheckpointNames = field(default_factory=CheckpointNames, repr=False)
    context: int = 0
    mixers: tuple[Mixer, ...] = ()
    mask: Mask = "none"
    shared: dict[str, str] = field(default_factory=dict)
    beside: tuple[str, ...] = ()


class _Logits(torch.nn.Module):
    """The model as a function of token ids and positions, both [1, tokens], to logits [1, tokens, vocabulary]."""

    def __init__(self, model: Any, mask: Mask) -> None:
        super().__init__()
        self.model = model
        self.mask: Mask = mask

    def forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        given = token_inputs(self.model, ids, positions) | mask_inputs(self.mask, positions, self.model.dtype)
        return self.model(input_ids=ids, **given, use_cache=False).logits


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No gradients, no warnings, no log lines of transformers."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(level)


def _build(config: dict[str, Any], dtype: str, attention: str = ATTENTION_NAME, maker: Callable[..., Any] | None = None) -> Any:
    """The model on the meta device, made by `maker` or as the causal LM of its type. Raises ModelError if it cannot be."""
    model_type = config.get("model_type", "")
    make = maker or model_maker(config)
    if make is None:
        raise ModelError(
            f"model type {model_type!r} is not a causal language model of transformers {transformers.__version__}",
            where="config.json, field model_type",
            expected="a causal LM such as llama, qwen2, qwen3 or mistral",
            got=repr(model_type),
            fix="choose another model, or check config.json",
        )
    refuse_unpackable(model_type)
    try:
        typed = AutoConfig.for_model(**copy.deepcopy(config))  # transformers adds to the dictionaries it is given
        with torch.device("meta"):
            model = make(
                typed,
                dtype=TORCH_DTYPES[dtype],
                attn_implementation=attention,
                experts_implementation=EXPERTS_NAME,
            )
    except _CONFIG_ERRORS as error:
        if error.args == (ATTENTION_NAME,):
            return _build(config, dtype, "eager")  # its attention cannot be replaced while it is built
        raise ModelError(
            f"transformers cannot build a {model_type} model from this configuration",
            where="config.json",
            got=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            fix="correct config.json",
        ) from error
    _leave_memory(model)
    return model.eval()


def _leave_memory(model: torch.nn.Module) -> None:
    """Parameters that a model makes in memory whatever device it is built on (XLNet), without their values."""
    for module in model.modules():
        for name, held in module._parameters.items():
            if held is not None and not held.is_meta:
                module._parameters[name] = torch.nn.Parameter(held.to("meta"), held.requires_grad)


def _names(model: Any, parameters: dict[str, tuple[int, ...]], whole: dict[str, Any], config: dict[str, Any]) -> CheckpointNames:
    maker = maker_of_the_whole(whole, config)
    if maker is None:
        return checkpoint_names(model)
    with absent_parts_are_empty():
        outer = _build(whole, "f32", "eager", maker)
    kind = type(outer.get_decoder())
    return names_in_the_whole(checkpoint_names(outer), _stored(outer), parameters, (_path_of(model, kind), _path_of(outer, kind)))


def _path_of(model: torch.nn.Module, kind: type) -> str:
    return next(path for path, module in model.named_modules() if type(module) is kind)


def _stored(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Parameters, and the buffers that are saved with them."""
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    for path, module in model.named_modules():
        for name, value in module._buffers.items():
            if value is not None and name not in module._non_persistent_buffers_set:
                shapes[f"{path}.{name}" if path else name] = tuple(value.shape)
    return shapes


def _require_elements(parameters: dict[str, tuple[int, ...]]) -> None:
    for name, shape in parameters.items():
        if 0 in shape:
            raise ModelError(
                "a parameter of the model has no elements",
                where=f"config.json, for {name}",
                got=str(list(shape)),
                fix="correct config.json",
            )


def _depth(config: Any) -> int:
    depth = read_field(vars(config) | {"model_type": config.model_type}, "num_hidden_layers")
    if depth is None:
        depth = getattr(config, "num_hidden_layers", None)  # which some work out from the kinds of their layers
    if not isinstance(depth, int) or depth < 1:
        raise ModelError(
            f"a {config.model_type} configuration does not say how many layers the language model has",
            where="config.json, field num_hidden_layers",
            expected="a number of layers, 1 or more",
            got=repr(depth),
            fix="give the configuration of a language model alone",
        )
    return depth


def _per_layer_lists(config: Any, depth: int) -> list[str]:
    return [name for name, value in vars(config).items() if isinstance(value, list) and len(value) == depth]


def _fingerprint(layer: torch.nn.Module, config: Any, lists: list[str], index: int, shared: dict[str, str]) -> tuple[Any, ...]:
    modules = tuple(
        (path, type(module).__qualname__, tuple(sorted((k, v) for k, v in vars(module).items() if _is_feature(k, v))))
        for path, module in layer.named_modules()
    )
    shapes = tuple((name, tuple(parameter.shape)) for name, parameter in layer.named_parameters())
    own = tuple(repr(getattr(config, name)[index]) for name in lists)
    return modules, shapes, own, tuple(sorted(shared.items())), layer_numbers(layer, index)


def _is_feature(name: str, value: object) -> bool:
    return name not in {*_LAYER_NUMBERS, "training"} and isinstance(value, _SCALARS)


def _keep_one_layer_per_kind(
    model: torch.nn.Module, config: Any, every_layer: bool
) -> tuple[LayerList, tuple[int, ...], dict[str, str]]:
    """The layer list, the kind of each layer, and what the kept ones share with others: name to first name."""
    depth = _depth(config)
    if is_unfolded(model, config, depth):
        return LayerList("", torch.nn.ModuleList()), tuple(range(depth)), {}
    found = find_layer_list(model, depth, config.model_type)
    path, layers = found.path, found.layers
    every_layer = every_layer or bool(found.beside)  # what the model does between its lists is in none of them
    lists = _per_layer_lists(config, depth)
    shared = shared_parameters(layers, {id(value): name for name, value in model.named_parameters()})
    seen: dict[tuple[Any, ...], int] = {}
    kept: list[int] = []
    kinds = []
    for index, layer in enumerate(layers):
        mark = (index,) if every_layer else _fingerprint(layer, config, lists, index, shared[index])
        if mark not in seen:
            seen[mark] = len(kept)
            kept.append(index)
        kinds.append(seen[mark])
    model.set_submodule(path, torch.nn.ModuleList(layers[index] for index in kept))
    for position, index in enumerate(kept):
        renumber(layers[index], index, position)
        for module in layers[index].modules():
            vars(module).update(dict.fromkeys(_LAYER_NUMBERS & vars(module).keys(), position))
    for name in lists:
        setattr(config, name, [getattr(config, name)[index] for index in kept])
    keep_listed(model, config, kept)
    config.num_hidden_layers = len(kept)
    names = {f"{path}.{at}.{name}": first for at, index in enumerate(kept) for name, first in shared[index].items()}
    return found, tuple(kinds), names


def _enter_layers_in_f32(model: Any) -> None:
    """Where layers hand a float32 residual on, give the first one such a residual too: its values are the same."""
    model.get_input_embeddings().register_forward_hook(lambda _module, _given, found: found.float())


def _completed(config: dict[str, Any], typed: Any) -> dict[str, Any]:
    """The configuration with what it leaves to transformers filled in: sizes, and what differs from layer to layer."""
    held = vars(typed)  # asking for a field that differs from layer to layer is an error in some configurations
    sizes = {name: held[own] for name in _SIZES if (own := typed.attribute_map.get(name, name)) in held}
    named = [*_per_layer_lists(typed, _depth(typed)), *(name for name in INDEX_LISTS if held.get(name) is not None)]
    lists = {name: list(getattr(typed, name)) for name in named}
    return {**sizes, **config, **{name: value for name, value in lists.items() if config.get(name) is None}}


def trace(
    config: dict[str, Any],
    dtype: str,
    every_layer: bool = False,
    context: int = 0,
    attention: str = ATTENTION_NAME,
    mask: Mask = "none",
) -> TracedModel:
    """Trace a model from its configuration alone; with `every_layer`, each layer as if it were a kind of its own.

    `context` is the longest sequence in tokens, for rope that depends on it (0: within what the model was first trained for).
    A model that does not take its attention from transformers' interface is traced with "eager" `attention`, its own, and a
    decoder that is not causal by itself with a causal `mask`.
    Raises ModelError if transformers does not know the model, or it cannot be exported.
    """
    with quiet(), complex_as_pairs():
        whole, config = config, text_configuration(config)
        model = _build(config, dtype, attention)
        parameters = _stored(model)
        names = _names(model, parameters, whole, config)
        _require_elements(parameters)
        ties = _tied_names(model)
        typed: Any = model.config
        run_in_one_piece(typed)
        require_one_chunk(typed, context)
        own_attention = typed._attn_implementation == "eager"
        config = _completed(config, typed)
        found, kinds, shared = _keep_one_layer_per_kind(model, typed, every_layer)
        if getattr(typed, "residual_in_fp32", False):
            _enter_layers_in_f32(model)
        constants = fill_constants(model) | freeze_rope(model, context)
        recognise_experts(model)
        replace_looped_experts(model)
        replace_relative_attention(model, attend)
        fix_sparsity(model)
        choose_language_adapters(model, getattr(typed, "default_language", None))
        mixers = extract_mixers(model, typed) if has_recurrence(model) else ()
        leave_out_selection(model, context)
        give_biases_of_keys(model, context)
        try:
            exported, longest = _exported(model, mask, context)
        except NotCausal:  # or so it calls itself: its own mask tells
            if not own_attention:
                return trace(whole, dtype, every_layer, context, "eager")
            raise
        except ModelError:
            raise
        except Exception as error:  # torch.export raises whatever the traced code raises
            if not own_attention:
                return trace(whole, dtype, every_layer, context, "eager")
            first_line = str(error).strip().splitlines()[0] if str(error).strip() else ""
            raise ModelError(
                f"model type {config['model_type']!r} cannot be traced with a dynamic number of tokens",
                where=type(model).__name__,
                got=f"{type(error).__name__}: {first_line[:300]}",
                fix="choose one of the families that docs/models.md lists",
            ) from error
        require_within(longest, context, config["model_type"])
        leave_out_empty_parts(exported)
        architecture = type(model).__name__
        if own_attention:
            try:
                replace_eager_attention(exported, constants, architecture, context)
            except NotCausal:
                if mask != "none" or not getattr(typed, "is_decoder", False):
                    raise
                return trace(whole, dtype, every_layer, context, "eager", "causal")
        elif not mixers and not any(str(node.target) == "tokenspeed.attention.default" for node in exported.graph.nodes):
            return trace(whole, dtype, every_layer, context, "eager")
    return TracedModel(
        exported=exported,
        config=config,
        architecture=architecture,
        layers_path=found.path,
        kinds=kinds,
        parameters=parameters,
        ties=ties,
        constants=constants,
        dtype=dtype,
        names=names,
        context=context,
        mixers=mixers,
        mask=mask,
        shared=shared,
        beside=found.beside,
    )


def _exported(model: Any, mask: Mask, context: int) -> tuple[ExportedProgram, int]:
    """The model's operations, and the most tokens that they hold for (0: any number). This is what takes the time."""
    example = torch.zeros(1, 8, dtype=torch.long, device="meta")
    with KeptConstants():
        exported, longest = export_over_tokens(_Logits(model, mask), (example, example.clone()), context)
    return exported.run_decompositions(DECOMPOSITIONS), longest


def _tied_names(model: torch.nn.Module) -> dict[str, str]:
    first: dict[int, str] = {}
    ties: dict[str, str] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        owner = first.setdefault(id(value), name)
        if owner != name:
            ties[name] = owner
    return ties


def placeholder_targets(exported: ExportedProgram) -> dict[str, tuple[InputKind, str]]:
    """What each placeholder of the exported graph is: its kind and, for parameters and buffers, its name in the model."""
    return {
        spec.arg.name: (spec.kind, (spec.target or "").removeprefix("model.")) for spec in exported.graph_signature.input_specs
    }
