"""Binds a shape-only plan to weights: the same plan, with the digest of every checkpoint tensor."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import msgspec

from .digests import bound_compatibility, with_digests
from .entry_source import CHUNK_BYTES, EntryData
from .errors import WeightsError
from .reader import Plan
from .schema import SourceTensor
from .writer import write_plan


class TensorLike(Protocol):
    """A tensor of a checkpoint: its encoding and shape as in `SourceTensor`, `bytes` as stored."""

    @property
    def encoding(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def bytes(self) -> int: ...


class CheckpointLike(Protocol):
    """Tensors by name; `read` gives the stored bytes of one and may be called from several threads."""

    @property
    def tensors(self) -> Mapping[str, TensorLike]: ...
    def read(self, name: str) -> memoryview: ...


class _MappedEntry:
    """An entry of an open plan, copied as it is checked."""

    def __init__(self, plan: Plan, name: str, size: int) -> None:
        self._plan, self._name, self.size = plan, name, size

    def chunks(self) -> Iterator[memoryview]:
        data = self._plan.entry(self._name)
        for start in range(0, len(data), CHUNK_BYTES):
            yield data[start : start + CHUNK_BYTES]


def bind_plan(plan: Plan, checkpoint: CheckpointLike, output: Path, progress: Callable[[str], None] | None = None) -> str:
    """Write `plan` to `output` with its sources' digests; returns the new plan id.

    A plan that is bound already must be bound to the same weights. Raises `WeightsError` when a tensor is missing or
    has another encoding, shape, size or digest.
    """
    for source in plan.manifest.sources:
        _check_tensor(source, checkpoint)

    def digested(source: SourceTensor) -> SourceTensor:
        found = with_digests(source, checkpoint.read(source.name))
        if progress is not None:
            progress(source.name)
        _check_digest(source, found)
        return found

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing releases the GIL
        sources = tuple(pool.map(digested, plan.manifest.sources))
    bound_before = any(source.digest is not None for source in plan.manifest.sources)
    kv = plan.manifest.kv
    if not bound_before:
        kv = msgspec.structs.replace(kv, compatibility=bound_compatibility(kv.compatibility, sources))
    manifest = msgspec.structs.replace(plan.manifest, sources=sources, kv=kv, entries=())
    entries: dict[str, EntryData] = {entry.name: _MappedEntry(plan, entry.name, entry.size) for entry in plan.manifest.entries}
    return write_plan(output, manifest, entries)


def _check_tensor(source: SourceTensor, checkpoint: CheckpointLike) -> None:
    fix = "give the weights this plan was compiled for, or compile a plan for these"
    tensor = checkpoint.tensors.get(source.name)
    if tensor is None:
        what = "The weights lack a tensor the plan needs."
        raise WeightsError(what, where=source.name, expected=_described(source), got="none", fix=fix)
    if (tensor.encoding, tuple(tensor.shape), tensor.bytes) != (source.encoding, source.shape, source.bytes):
        what = "A tensor of the weights is not the plan's."
        raise WeightsError(what, where=source.name, expected=_described(source), got=_described(tensor), fix=fix)


def _described(tensor: TensorLike) -> str:
    return f"{tensor.encoding}{list(tensor.shape)}, {tensor.bytes} bytes"


def _check_digest(source: SourceTensor, found: SourceTensor) -> None:
    if source.digest not in (None, found.digest):
        fix = "the plan is bound to other weights: bind the shape-only plan, or compile anew"
        what = "The plan is already bound to other weights."
        raise WeightsError(what, where=source.name, expected=str(source.digest), got=str(found.digest), fix=fix)
