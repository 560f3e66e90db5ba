"""Evaluates recipes (plans/recipe.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray

from ..plans.errors import PlanError
from ..plans.recipe import (
    Addend,
    Blocks,
    Cast,
    Concat,
    Dequantize,
    Numbers,
    Part,
    Quantize,
    Recipe,
    Scales,
    Slice,
    Source,
    Stack,
    Transpose,
    UnpermuteRope,
)
from ..plans.recipe_shapes import PLAIN_ENCODINGS, Result, SourceLookup, infer, scale_shape
from ..plans.schema import SourceTensor
from ..plans.template import instantiate
from ..plans.weight_layout import BLOCKS
from .float8 import float_blocks, scaled_floats
from .host_arrays import NUMPY_TYPES, HostArray, narrowed, widened

_DEQUANTIZE_ROWS = 512
_DEQUANTIZE_THREADS = 2


@dataclass(frozen=True)
class Stored:
    """A source as declared, and its stored bytes."""

    source: SourceTensor
    data: memoryview


def evaluate(
    recipe: Recipe, stored: Mapping[str, Stored], layer: int | None, weight: str, coordinates: Mapping[str, int] | None = None
) -> HostArray:
    """The value of a recipe for layer `layer` (None: names are not templates); may be a view of the checkpoint. `weight` is for
    errors, `coordinates` are this rank's by mesh axis (None: 0 on each). Blocks come as rows of bytes, [..., bytes].

    Raises PlanError when a step cannot be done.
    """
    try:
        result_of(recipe, stored, layer)
        return _Evaluation(stored, layer, coordinates or {}).value(recipe)
    except (RuntimeError, IndexError, ValueError, KeyError) as error:
        raise PlanError(
            "A recipe of the plan cannot be done.",
            where=weight,
            expected="steps that fit their sources",
            got=str(error).splitlines()[0] if str(error) else type(error).__name__,
            fix="compile the plan again",
        ) from None


def result_of(recipe: Recipe, stored: Mapping[str, Stored], layer: int | None) -> Result:
    """Shape and type that the recipe gives. Raises ValueError or KeyError when a step cannot be done."""
    return infer(recipe, lookup(stored, layer))


def lookup(stored: Mapping[str, Stored], layer: int | None) -> SourceLookup:
    """What a recipe of layer `layer` finds of its sources: shape and encoding."""

    def find(name: str) -> Result:
        source = stored[name if layer is None else instantiate(name, layer)].source
        return source.shape, source.encoding

    return find


@dataclass(frozen=True)
class _Evaluation:
    stored: Mapping[str, Stored]
    layer: int | None
    coordinates: Mapping[str, int]

    def value(self, recipe: Recipe) -> HostArray:
        match recipe:
            case Source():
                return _plain(self._find(recipe))
            case Dequantize():
                if recipe.scales is not None:
                    return scaled_floats(*self._floats(recipe.of, recipe.scales))
                return _dequantized(self._find(recipe.of))
            case Blocks():
                if recipe.scales is not None:
                    return float_blocks(*self._floats(recipe.of, recipe.scales))
                return _blocks(self._find(recipe.of))
            case Quantize():
                raise ValueError("quantize is the last step, done while packing")
            case Cast():
                if isinstance(recipe.of, Concat | Stack):
                    return self._joined(recipe.of, recipe.dtype)
                return cast(self.value(recipe.of), recipe.dtype)
            case Slice():
                whole = self.value(recipe.of)
                return _window(whole, recipe.dimension, slice(recipe.start, recipe.stop, recipe.stride))
            case Concat() | Stack():
                return self._joined(recipe, self._result(recipe)[1])
            case Transpose():
                whole = self.value(recipe.of)
                return HostArray(whole.data.transpose(recipe.permutation), whole.dtype)
            case UnpermuteRope():
                return _unpermuted(self.value(recipe.of), recipe.heads)
            case Part():
                return _part(self._stretches(recipe), recipe, self.coordinates.get(recipe.axis, 0))
            case Addend():
                whole = self.value(recipe.of)
                return HostArray(np.zeros_like(whole.data), whole.dtype) if self.coordinates.get(recipe.axis) else whole
            case Numbers():
                return HostArray(np.arange(recipe.count, dtype=np.int32), "i32")
            case _:
                assert_never(recipe)

    def _joined(self, recipe: Concat | Stack, dtype: str) -> HostArray:
        """The parts as one array, each made and cast in its place, so that no second copy of the whole is held."""
        shape, own = self._result(recipe)
        if own not in NUMPY_TYPES:
            # rows of blocks: their bytes are joined
            parts = [self.value(part).data for part in recipe.parts]
            join = np.concatenate if isinstance(recipe, Concat) else np.stack
            return HostArray(join(parts, recipe.dimension), own)
        whole = np.empty(shape, NUMPY_TYPES[dtype])
        self._fill(recipe, whole, dtype)
        return HostArray(whole, dtype)

    def _fill(self, recipe: Recipe, target: NDArray[Any], dtype: str) -> None:
        if isinstance(recipe, Stack):
            for index, part in enumerate(recipe.parts):
                self._fill(part, np.moveaxis(target, recipe.dimension, 0)[index], dtype)
        elif isinstance(recipe, Concat):
            start = 0
            for part in recipe.parts:
                stop = start + self._result(part)[0][recipe.dimension]
                place = (slice(None),) * recipe.dimension + (slice(start, stop),)
                self._fill(part, target[place], dtype)
                start = stop
        else:
            target[...] = cast(self.value(recipe), dtype).data

    def _result(self, recipe: Recipe) -> Result:
        return result_of(recipe, self.stored, self.layer)

    def _stretches(self, recipe: Part) -> Callable[[int, int], HostArray]:
        """What gives entries [first, stop) of the dimension that a part is of; of 8-bit floats, no others are made."""
        of, dimension = recipe.of, recipe.dimension
        if not isinstance(of, Blocks | Dequantize) or of.scales is None:
            return partial(_stretch, self.value(of), dimension)
        bits, factors, scales = self._floats(of.of, of.scales)
        make = float_blocks if isinstance(of, Blocks) else scaled_floats
        step = {bits.ndim - 2: scales.rows, bits.ndim - 1: scales.columns}.get(dimension, 1)

        def made(first: int, stop: int) -> HostArray:
            alone = step >= bits.shape[dimension]
            if first % step and not alone:
                return _stretch(make(bits, factors, scales), dimension, first, stop)
            before = (slice(None),) * dimension
            those = factors if alone else factors[(*before, slice(first // step, -(-stop // step)))]
            return make(bits[(*before, slice(first, stop))], those, scales)

        return made

    def _floats(self, source: Source, scales: Scales) -> tuple[NDArray[np.uint8], NDArray[np.float32], Scales]:
        """Bits of 8-bit floats, and their scales by blocks."""
        stored = self._find(source)
        shape = stored.source.shape
        factors = cast(_plain(self._find(scales.of)), "f32").data
        return np.frombuffer(stored.data, np.uint8).reshape(shape), factors.reshape(scale_shape(shape, scales)), scales

    def _find(self, source: Source) -> Stored:
        return self.stored[source.name if self.layer is None else instantiate(source.name, self.layer)]


def _window(whole: HostArray, dimension: int, window: slice) -> HostArray:
    return HostArray(whole.data[(slice(None),) * dimension + (window,)], whole.dtype)


def _stretch(whole: HostArray, dimension: int, first: int, stop: int) -> HostArray:
    """Entries of a dimension; along blocks, the bytes that hold them."""
    along = whole.dtype in BLOCKS and dimension == len(whole.shape) - 1
    elements, size = BLOCKS[whole.dtype] if along else (1, 1)
    return _window(whole, dimension, slice(first // elements * size, stop // elements * size))


def _part(stretch_of: Callable[[int, int], HostArray], recipe: Part, coordinate: int) -> HostArray:
    """A rank's part of each stretch, filled up with zeros."""
    parts: list[NDArray[Any]] = []
    dtype = ""
    for stretch in recipe.stretches:
        first, stop = stretch.of_rank(coordinate)
        # where there is none of it, the whole says what that is
        some = stretch_of(first, stop) if first < stop else stretch_of(stretch.start, stretch.stop)
        dtype = some.dtype
        data = some.data if first < stop else some.data[(slice(None),) * recipe.dimension + (slice(0, 0),)]
        parts.append(data)
        if stop - first < stretch.size:
            along = dtype in BLOCKS and recipe.dimension == data.ndim - 1
            elements, size = BLOCKS[dtype] if along else (1, 1)
            missing = list(data.shape)
            missing[recipe.dimension] = stretch.size // elements * size - data.shape[recipe.dimension]
            parts.append(np.zeros(missing, data.dtype))
    return HostArray(parts[0] if len(parts) == 1 else np.concatenate(parts, recipe.dimension), dtype)


def cast(values: HostArray, dtype: str) -> HostArray:
    """Rounded to `dtype`, to nearest, ties to even."""
    if values.dtype == dtype:
        return values
    if dtype == "bf16":
        return HostArray(narrowed(values.as_float()), dtype)
    plain = widened(values.data) if values.dtype == "bf16" else values.data
    with np.errstate(over="ignore"):
        return HostArray(plain.astype(NUMPY_TYPES[dtype]), dtype)


def _plain(stored: Stored) -> HostArray:
    """A source that is stored as plain numbers, where it lies."""
    source = stored.source
    if source.encoding not in PLAIN_ENCODINGS:
        raise ValueError(f"{source.name} is encoded as {source.encoding} and not dequantized")
    dtype = PLAIN_ENCODINGS[source.encoding]
    return HostArray(np.frombuffer(stored.data, NUMPY_TYPES[dtype]).reshape(source.shape), dtype)


def _blocks(stored: Stored) -> HostArray:
    """Rows of blocks as they lie in the file."""
    source = stored.source
    return HostArray(np.frombuffer(stored.data, np.uint8).reshape(*source.shape[:-1], -1), source.encoding.lower())


def _dequantized(stored: Stored) -> HostArray:
    """A source decoded to f32, blocks of rows in parallel."""
    source = stored.source
    if source.encoding in PLAIN_ENCODINGS:
        return HostArray(_plain(stored).as_float(), "f32")
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    kind = GGMLQuantizationType[source.encoding]
    width = source.shape[-1]
    rows = int(np.prod(source.shape[:-1], dtype=np.int64))
    encoded = np.frombuffer(stored.data, np.uint8).reshape(rows, -1)
    target = np.empty((rows, width), np.float32)

    def decode(start: int) -> None:
        stop = min(start + _DEQUANTIZE_ROWS, rows)
        target[start:stop] = dequantize(encoded[start:stop], kind)

    with ThreadPoolExecutor(_DEQUANTIZE_THREADS, "dequantize") as pool:
        list(pool.map(decode, range(0, rows, _DEQUANTIZE_ROWS)))
    return HostArray(target.reshape(source.shape), "f32")


def _unpermuted(rows: HostArray, heads: int) -> HostArray:
    """(heads, half, 2) rows to (heads, 2, half)."""
    shape = rows.shape
    if heads < 1 or shape[0] % (2 * heads):
        raise ValueError(f"{list(shape)} cannot be unpermuted for {heads} heads")
    pairs = rows.data.reshape(heads, shape[0] // heads // 2, 2, *shape[1:])
    return HostArray(pairs.swapaxes(1, 2).reshape(shape), rows.dtype)
