"""Loads a plan's weights: evaluates each recipe over checkpoint tensors, checks the sources, packs for the kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Protocol

import msgspec
import numpy as np

from ..plans.checkpoint import Checkpoint, open_checkpoint
from ..plans.errors import PlanError, WeightsError
from ..plans.names import weight_instances
from ..plans.program import DTYPE_BYTES, Program
from ..plans.rank_parts import is_cut, rank_part
from ..plans.rank_recipes import recipe_of_rank
from ..plans.recipe import Cast, Concat, Quantize, Recipe, Stack, decoded, sources
from ..plans.recipe_shapes import before_packing, lookup_in
from ..plans.schema import Manifest, SourceTensor, Weight
from ..plans.template import instantiate
from ..plans.weight_layout import stored_bytes
from .device.arrays import DeviceArray
from .dummy_weights import COUNTER, DUMMY, as_array, counter_array, dummy_array
from .host_arrays import HostArray, LibraryArray
from .mapped_pages import release_pages
from .mesh import Rank
from .native.records import PackedWeight
from .native.runtime import NativeRuntime, PackedArena, arena_bytes, pack
from .operands import Array
from .recipe_evaluation import Stored, evaluate, lookup, result_of
from .weight_checks import Check, Shares, digest_checks

_DIGEST_THREADS = 2

Progress = Callable[[int, int], None]
"""Bytes done, bytes in all."""


class PlanSource(Protocol):
    """What is needed of a plan: `plans.reader.Plan` is one."""

    @property
    def manifest(self) -> Manifest: ...
    def entry(self, name: str) -> memoryview: ...
    def bundled(self, name: str) -> tuple[memoryview, Callable[[], None]]: ...
    def program(self, name: str) -> Program: ...


Loaded = Array
Wanted = tuple[Weight, str, int]
"""A weight instance: its weight, its name, its layer."""

Make = Callable[[Weight, str, int], Sequence[HostArray]]
"""Makes a weight instance, on any thread, in pieces whose bytes lie one after another in it."""

Upload = Callable[[list[Wanted], Make, Callable[[Wanted], None]], dict[str, DeviceArray]]
"""Makes weight instances, on threads of its own, and copies them to where they stay, by name; tells of each that is done, in
order and on the calling thread."""


def load_weights(
    plan: PlanSource,
    weights: str | None,
    needed: set[str] | None = None,
    progress: Progress | None = None,
    native: NativeRuntime | None = None,
    exact: bool = False,
    upload: Upload | None = None,
    rank: Rank | None = None,
) -> dict[str, Loaded]:
    """Final tensors by instance name; all of them, or those in `needed`.

    `weights` is a path for `open_checkpoint`, None for weights bundled in the plan, "dummy" (fast made-up values) or
    "counter" (the values that goldens are computed with); `native` packs panels; with `exact`, block types are held as
    the model's own type instead, decoded or not rounded at all; `upload` brings them to a device; `rank` is the one whose
    parts these are (None: of one).
    Without `upload` one final tensor is made at a time. Their sources are not kept, neither as arrays nor as pages of mapped
    files. Digests are checked meanwhile, in threads of their own.
    Raises WeightsError, naming the tensor, if the weights do not belong to the plan; PlanError if a recipe cannot be done.
    """
    wanted = wanted_weights(plan.manifest, needed, exact)
    total = sum(weight.bytes for weight, _, _ in wanted)
    arena = PackedArena(arena_bytes([weight.bytes for weight, _, _ in wanted if weight.prepack == "panel"]))
    loaded: dict[str, Loaded] = {}
    done = 0
    with _maker(plan, weights, wanted, rank or Rank(plan.manifest.mesh)) as maker:

        def finish(item: Wanted) -> None:
            nonlocal done
            weight, _, layer = item
            maker.release(weight, layer)
            done += weight.bytes
            if progress is not None:
                progress(done, total)

        if upload is not None:
            return {**upload(wanted, maker.pieces, finish)}
        for weight, name, layer in wanted:
            made = maker.make(weight, name, layer)
            loaded[name] = _panel(made, weight, name, arena, native) if weight.prepack == "panel" else packed(made, weight)
            del made
            finish((weight, name, layer))
    return loaded


def wanted_weights(manifest: Manifest, needed: set[str] | None, exact: bool) -> list[Wanted]:
    """The instances that `load_weights` loads, in its order."""
    return [
        (weight, name, layer)
        for weight in map(_unrounded(manifest) if exact else lambda weight: weight, manifest.weights)
        for name, layer in weight_instances(weight)
        if needed is None or name in needed
    ]


def _unrounded(manifest: Manifest) -> Callable[[Weight], Weight]:
    """The weight in the model's own type, from the same sources, where it is stored in blocks."""
    dtype = manifest.model.dtype

    def change(weight: Weight) -> Weight:
        if weight.dtype in DTYPE_BYTES:
            return weight
        of = weight.recipe.of if isinstance(weight.recipe, Quantize) else weight.recipe
        recipe = Cast(decoded(of), dtype)
        size = stored_bytes(weight.shape, dtype, weight.prepack)
        return msgspec.structs.replace(weight, dtype=dtype, bytes=size, recipe=recipe)

    return change


def packed(array: HostArray, weight: Weight) -> HostArray | LibraryArray:
    """The array in the layout a library function wants. Raises PlanError when this machine's oneDNN cannot pack it."""
    if weight.prepack == "none":
        return HostArray(array.data.copy(), array.dtype)  # it may be a view of the checkpoint's file
    from .onednn import reorder

    try:
        return LibraryArray(reorder(array))
    except RuntimeError as error:
        raise PlanError(
            "This machine's oneDNN cannot pack a weight the way the plan wants.",
            where=weight.name,
            expected=f"a packed layout for {weight.dtype}{list(weight.shape)}",
            got=str(error).splitlines()[0],
            fix="compile the plan for this machine's instruction set (tokenspeed-compile --target)",
        ) from None


def _panel(made: HostArray, weight: Weight, name: str, arena: PackedArena, native: NativeRuntime | None) -> PackedWeight:
    if native is None:
        raise PlanError(
            "A weight has the layout of native kernels, but the plan has none.", where=name, fix="compile the plan again"
        )
    target = arena.take(weight.shape, weight.dtype)
    pack(native, made.data, made.dtype, target, name)
    return target


class _maker:
    """Context in which instances are made; leaving it waits for the digests and raises if one is wrong."""

    def __init__(self, plan: PlanSource, weights: str | None, wanted: list[Wanted], rank: Rank) -> None:
        self._coordinates = rank.coordinates
        self._made_up = weights if weights in (DUMMY, COUNTER) else None
        self._declared = {source.name: source for source in plan.manifest.sources}
        self._stored: dict[str, Stored] = {}
        self._checks: list[Check] = []
        if self._made_up is None:
            self._stored, self._checks = _stored_sources(plan, weights, wanted, rank)
        self._pool: ThreadPoolExecutor | None = None
        self._running: list[Future[None]] = []

    def __enter__(self) -> _maker:
        if self._checks:
            self._pool = ThreadPoolExecutor(_DIGEST_THREADS, "weights-digest")
            self._running = [self._pool.submit(check) for check in self._checks]
        return self

    def make(self, weight: Weight, name: str, layer: int) -> HostArray:
        """An instance of a weight; it may be a view of a mapped file."""
        if self._made_up and sources(weight.recipe):
            return self._invented(weight, name, layer)
        return _made(self._stored, _of_rank(weight, self._coordinates), name, layer, self._coordinates)

    def pieces(self, weight: Weight, name: str, layer: int) -> Sequence[HostArray]:
        """The same in pieces that need not be joined first."""
        if self._made_up and sources(weight.recipe):
            return [self._invented(weight, name, layer)]
        return _made_in_pieces(self._stored, _of_rank(weight, self._coordinates), name, layer, self._coordinates)

    def _invented(self, weight: Weight, name: str, layer: int) -> HostArray:
        """Counter weights are of the whole, of which a rank has its part. Block types are rounded from float32 while packing."""
        dtype = weight.dtype if weight.dtype in DTYPE_BYTES else "f32"
        if self._made_up == DUMMY:
            return dummy_array(name, weight.shape, dtype)
        if not is_cut(weight.recipe):
            return counter_array(name, weight.shape, dtype)
        part = rank_part(weight.recipe, lookup_in(self._declared, layer if weight.layers else None), self._coordinates)
        return as_array(part.counter_rows(name), dtype)

    def release(self, weight: Weight, layer: int) -> None:
        """An instance is where it stays: the pages of its sources may go."""
        if self._made_up is None:
            for name in _names_of(_of_rank(weight, self._coordinates), layer):
                release_pages(self._stored[name].data)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._pool is None:
            return
        self._pool.shutdown(wait=True, cancel_futures=error is not None)
        if error is None:
            for check in self._running:
                check.result()


def _of_rank(weight: Weight, coordinates: Mapping[str, int]) -> Weight:
    """The weight as it is made on one rank."""
    return msgspec.structs.replace(weight, recipe=recipe_of_rank(weight.recipe, coordinates))


def _names_of(weight: Weight, layer: int) -> Iterator[str]:
    """The sources of an instance of a weight."""
    for name in sources(weight.recipe):
        yield instantiate(name, layer) if weight.layers else name


def _stored_sources(
    plan: PlanSource, weights: str | None, wanted: list[Wanted], rank: Rank
) -> tuple[dict[str, Stored], list[Check]]:
    """The sources' bytes, once all names, encodings and shapes were checked, and checks of their digests. No byte is read yet."""
    declared = {source.name: source for source in plan.manifest.sources}
    checkpoint = None if weights is None else open_checkpoint(weights)
    stored: dict[str, Stored] = {}
    checks: list[Check] = []
    needed = [name for weight, _, layer in wanted for name in _names_of(_of_rank(weight, rank.coordinates), layer)]
    for name in needed:
        if name not in declared:
            raise PlanError("A recipe reads a tensor that the plan does not declare.", where=name, fix="compile the plan again")
    shares = Shares(rank, _by_weight(wanted), declared)
    for source in (declared[name] for name in dict.fromkeys(needed)):
        name, mine = source.name, shares.of(source)
        if checkpoint is not None:
            _check_declared(checkpoint, source)
            stored[name] = Stored(source, checkpoint.read(name))
            if source.digest is not None:
                checks += digest_checks(source, stored[name].data, mine)
        else:
            data, check = _bundled(plan, source)
            stored[name] = Stored(source, data)
            if mine:
                checks.append(partial(_check_bundled, check, data))
    return stored, checks


def _by_weight(wanted: list[Wanted]) -> list[tuple[Weight, list[int]]]:
    """Each weight with its layers."""
    found: dict[str, tuple[Weight, list[int]]] = {}
    for weight, _, layer in wanted:
        # layers that differ in shape are weights of one name
        found.setdefault(f"{weight.name} {weight.layers}", (weight, []))[1].append(layer)
    return list(found.values())


def _bundled(plan: PlanSource, source: SourceTensor) -> tuple[memoryview, Check]:
    """The plan's own copy of a source, and the check of its digest: the container's, over the same bytes as the source's."""
    if source.entry is None:
        raise WeightsError(
            "The plan holds no weights of its own.",
            where=source.name,
            expected="weights to load",
            got="no --weights",
            fix="name a checkpoint with --weights PATH, or use --weights dummy",
        )
    data, check = plan.bundled(source.entry)
    if len(data) != source.bytes:
        raise PlanError(
            "A bundled tensor has the wrong size.",
            where=source.entry,
            expected=f"{source.bytes} bytes",
            got=f"{len(data)} bytes",
            fix="fetch the plan again",
        )
    return data, check


def _check_declared(checkpoint: Checkpoint, source: SourceTensor) -> None:
    tensor = checkpoint.tensors.get(source.name)
    found = "no such tensor" if tensor is None else f"{tensor.encoding}{list(tensor.shape)}, {tensor.bytes} bytes"
    expected = f"{source.encoding}{list(source.shape)}, {source.bytes} bytes"
    if found != expected:
        raise WeightsError(
            "The weights are not those the plan was compiled for.",
            where=f"{source.name} in {checkpoint.path}",
            expected=expected,
            got=found,
            fix="give the weights that the plan was compiled for, or compile a plan for these",
        )


def _check_bundled(check: Check, data: memoryview) -> None:
    check()
    release_pages(data)


def _made(stored: Mapping[str, Stored], weight: Weight, name: str, layer: int, coordinates: Mapping[str, int]) -> HostArray:
    index = layer if weight.layers else None
    _check_result(stored, weight, name, index)
    recipe = before_packing(weight.recipe, lookup(stored, index)) if weight.prepack == "panel" else weight.recipe
    made = evaluate(recipe, stored, index, name, coordinates)
    return HostArray(np.ascontiguousarray(made.data), made.dtype)


def _made_in_pieces(
    stored: Mapping[str, Stored], weight: Weight, name: str, layer: int, coordinates: Mapping[str, int]
) -> list[HostArray]:
    index = layer if weight.layers else None
    _check_result(stored, weight, name, index)
    recipe = before_packing(weight.recipe, lookup(stored, index)) if weight.prepack == "planes" else weight.recipe
    return [evaluate(part, stored, index, name, coordinates) for part in _parts_in_order(recipe)]


def _parts_in_order(recipe: Recipe) -> Iterator[Recipe]:
    """Recipes whose results, one after another, are the recipe's: what is joined along the first dimension."""
    if isinstance(recipe, Concat | Stack) and recipe.dimension == 0:
        for part in recipe.parts:
            yield from _parts_in_order(part)
    else:
        yield recipe


def _check_result(stored: Mapping[str, Stored], weight: Weight, name: str, index: int | None) -> None:
    shape, dtype = result_of(weight.recipe, stored, index)
    if (shape, dtype) != (weight.shape, weight.dtype):
        raise PlanError(
            "A recipe gives another tensor than the plan says.",
            where=name,
            expected=f"{weight.dtype}{list(weight.shape)}",
            got=f"{dtype}{list(shape)}",
            fix="compile the plan again",
        )
