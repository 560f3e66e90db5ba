"""KV groups from the attention operations of a module, and the digest that says when two plans' KV is interchangeable."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import torch
from torch import Tensor

from ..ir import module as modules
from ..ir.mlir import ir
from ..ir.recurrence import state_arguments
from ..ir.types import dtype_of, shape_of
from ..passes.window_pools import cache_layers
from ..plans.digests import bound_compatibility
from ..plans.errors import ModelError, UsageError
from ..plans.kv_caches import cache_names, caches_of_libraries
from ..plans.program import DType, Program
from ..plans.schema import KvGroup, SourceTensor, StateGroup

ATTENTION = {"ts.attention", "ts.cached_attention", "ts.latent_attention"}


def kv_groups(module: ir.Module, kv_dtype: DType | None = None, windows: Sequence[int] = ()) -> tuple[KvGroup, ...]:
    """Layers with equal geometry and window, in one group each, ordered by first layer; keys and values are kept as `kv_dtype`
    (None: the attention's own type). `windows` have a pool each, in that order.

    Raises UsageError where layers keep latents, which are of the model's type.
    """
    found: dict[_Geometry, set[int]] = {}
    for operation in modules.walk(modules.step_block(module)):
        if operation.name not in ATTENTION:
            continue
        found.setdefault(_geometry(operation), set()).update(cache_layers(operation))  # one cache may be read by several
    if kv_dtype is not None and any(geometry.kind == "latent" for geometry in found):
        raise UsageError("latents are kept in the model's type", where="--kv-dtype", expected="auto", got=kv_dtype)
    groups = []
    for geometry, layers in sorted(found.items(), key=lambda item: min(item[1])):
        window = geometry.window
        groups.append(
            KvGroup(
                name="latent" if geometry.kind == "latent" else f"window{window}" if window else "full",
                kind=geometry.kind,
                layers=tuple(sorted(layers)),
                heads=geometry.heads,
                head_dim=geometry.head_dim,
                dtype=kv_dtype or geometry.dtype,  # pyright: ignore[reportArgumentType]
                window=window or None,
                pool=windows.index(window) + 1 if window in windows else 0,
            )
        )
    return tuple(groups)


def state_groups(module: ir.Module, slots: int) -> tuple[StateGroup, ...]:
    """Layers with equal recurrent states, in one group each, ordered by first layer.

    Raises ModelError for a layer with two recurrences.
    """
    found: dict[tuple[tuple[tuple[int, ...], str], ...], list[int]] = {}
    for operation in modules.walk(modules.step_block(module)):
        if operation.name == "ts.recurrence":
            states = state_arguments(operation)
            geometry = tuple((tuple(size or 0 for size in shape_of(state)[1:]), dtype_of(state)) for state in states)
            found.setdefault(geometry, []).extend(cache_layers(operation))
    layers = [layer for group in found.values() for layer in group]
    twice = sorted({layer for layer in layers if layers.count(layer) > 1})
    if twice:
        raise ModelError(
            "a layer has several recurrent parts", where=f"layer {twice[0]}", expected="one for each layer", got=str(twice)
        )
    groups = []
    for number, (geometry, group) in enumerate(sorted(found.items(), key=lambda item: min(item[1]))):
        shapes, dtypes = (tuple(part) for part in zip(*geometry, strict=True))
        name = f"state{number}" if number else "state"
        groups.append(StateGroup(name=name, layers=tuple(sorted(group)), slots=slots, shapes=shapes, dtypes=dtypes))
    return tuple(groups)


def ordered(groups: Sequence[KvGroup], programs: Sequence[Program]) -> tuple[KvGroup, ...]:
    """The groups with the block order that suits what the programs run on them: head-major, in which the keys of a head are one
    stream, where the plan's own kernels alone touch the caches."""
    of_libraries = {cache for program in programs for cache, _ in caches_of_libraries(program)}

    def is_ours(group: KvGroup) -> bool:
        return group.kind == "paged" and of_libraries.isdisjoint(cache_names(group))

    return tuple(msgspec.structs.replace(group, block_order="head_major") if is_ours(group) else group for group in groups)


@dataclass(frozen=True)
class _Geometry:
    kind: Literal["paged", "latent"]
    heads: int
    head_dim: int
    dtype: str
    window: int = 0


def _geometry(operation: ir.Operation) -> _Geometry:
    q = operation.operands[0]
    if operation.name == "ts.latent_attention":
        latent, rotated = (shape_of(operation.operands[at])[1] or 0 for at in (2, 3))
        return _Geometry("latent", 1, latent + rotated, dtype_of(q))
    return _Geometry("paged", _kv_heads(operation), shape_of(q)[2] or 0, dtype_of(q), modules.int_attribute(operation, "window"))


def _kv_heads(operation: ir.Operation) -> int:
    if operation.name == "ts.attention":
        return shape_of(operation.operands[1])[1] or 0
    return modules.int_attribute(operation, "kv_heads")


def compatibility(
    groups: Sequence[KvGroup],
    sources: Sequence[SourceTensor],
    constants: dict[str, Tensor],
    architecture: str,
    states: Sequence[StateGroup] = (),
) -> str:
    """The seed of prefix hashes: what keys and values depend on, and nothing else. A recompile keeps it."""
    digest = hashlib.sha256(architecture.encode())
    # which pool blocks are of changes nothing that is in them
    plain = [{name: value for name, value in msgspec.to_builtins(group).items() if name != "pool"} for group in groups]
    digest.update(msgspec.json.encode(plain))
    for group in states:
        digest.update(msgspec.json.encode((group.layers, group.shapes, group.dtypes)))
    for source in sorted(sources, key=lambda source: source.name):
        digest.update(msgspec.json.encode((source.name, source.encoding, source.shape)))
    for name, value in sorted(constants.items()):
        exact = value.float() if value.dtype == torch.bfloat16 else value  # numpy has no bfloat16
        digest.update(name.encode() + exact.numpy().tobytes())
    shape_only = digest.hexdigest()
    bound = bool(sources) and all(source.digest for source in sources)
    return bound_compatibility(shape_only, sources) if bound else shape_only
