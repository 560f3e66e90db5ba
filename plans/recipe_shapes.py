"""What a recipe gives: shape and dtype, from the shapes and encodings of its sources."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import assert_never

import msgspec

from .program import DTYPE_BYTES
from .recipe import (
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
    inputs_of,
)
from .schema import SourceTensor, Weight
from .template import instantiate
from .weight_layout import BLOCKS, WEIGHT_BLOCKS, chunk_of

MAX_DEPTH = 32
MAX_NUMBERS = 1 << 20

PLAIN_ENCODINGS = {"F32": "f32", "BF16": "bf16", "F16": "f16", "I32": "i32", "I64": "i64", "U8": "u8", "I8": "i8"}

Result = tuple[tuple[int, ...], str]
SourceLookup = Callable[[str], Result]
"""(shape, encoding) of a source by its name; raises `ValueError` when there is none."""


def count_nodes(recipe: Recipe, depth: int = 1) -> int:
    """Steps in a recipe. Raises `ValueError` when it is nested more than `MAX_DEPTH` deep."""
    if depth > MAX_DEPTH:
        raise ValueError(f"more than {MAX_DEPTH} steps deep")
    return 1 + sum(count_nodes(part, depth + 1) for part in inputs_of(recipe))


def infer(recipe: Recipe, lookup: SourceLookup) -> Result:
    """(shape, dtype) of the value a recipe gives. Raises `ValueError` saying which step cannot be done."""
    match recipe:
        case Source():
            return _plain(recipe, lookup)
        case Dequantize():
            _check_scales(recipe, lookup)
            return lookup(recipe.of.name)[0], "f32"
        case Blocks():
            return _blocks(recipe, lookup)
        case Quantize():
            return _quantized(recipe, *infer(recipe.of, lookup))
        case Cast():
            if recipe.dtype not in DTYPE_BYTES:
                raise ValueError(f"cast to unknown dtype {recipe.dtype!r}")
            return _floating("cast", *infer(recipe.of, lookup))[0], recipe.dtype
        case Slice():
            return _sliced(recipe, *infer(recipe.of, lookup))
        case Concat():
            return _concatenated(recipe, [infer(part, lookup) for part in recipe.parts])
        case Stack():
            return _stacked(recipe, [infer(part, lookup) for part in recipe.parts])
        case Transpose():
            return _transposed(recipe, *infer(recipe.of, lookup))
        case UnpermuteRope():
            return _unpermuted(recipe, *infer(recipe.of, lookup))
        case Part():
            return _part(recipe, *infer(recipe.of, lookup))
        case Addend():
            return _floating("addend", *infer(recipe.of, lookup))
        case Numbers():
            if not 1 <= recipe.count <= MAX_NUMBERS:
                raise ValueError(f"{recipe.count} numbers, expected 1 to {MAX_NUMBERS}")
            return (recipe.count,), "i32"
        case _:
            assert_never(recipe)


def lookup_in(sources: Mapping[str, SourceTensor], layer: int | None) -> SourceLookup:
    """What a recipe of layer `layer` (None: its names are no templates) finds of these sources."""

    def find(name: str) -> Result:
        full = name if layer is None else instantiate(name, layer)
        if full not in sources:
            raise ValueError(f"no source {full!r}")
        return sources[full].shape, sources[full].encoding

    return find


PACKED_FROM = ("f32", "bf16")
"""Types whose values packing takes as they are, and rounds itself."""


def before_packing(recipe: Recipe, lookup: SourceLookup) -> Recipe:
    """What is made of a weight's sources before it is packed: no quantising, and no cast of what packing takes anyway."""
    of = recipe.of if isinstance(recipe, Quantize) else recipe
    return _without_casts(of, lambda inner: infer(inner, lookup)[1])


def packing_kinds(weights: Sequence[Weight], sources: Sequence[SourceTensor]) -> set[tuple[str, str, int]]:
    """(type packed from, block type, chunk) of every weight in planes; made-up ones are packed from f32."""
    declared = {source.name: (source.shape, source.encoding) for source in sources}
    found: set[tuple[str, str, int]] = set()
    for weight in weights:
        if weight.prepack != "planes":
            continue
        after = weight.dtype, chunk_of(weight.shape[-1], weight.dtype)
        found.add(("f32", *after))
        for layer in weight.layers or (None,):

            def lookup(name: str, layer: int | None = layer) -> Result:
                return declared[name if layer is None else instantiate(name, layer)]

            found.add((infer(before_packing(weight.recipe, lookup), lookup)[1], *after))
    return found


def _without_casts(recipe: Recipe, dtype_of: Callable[[Recipe], str]) -> Recipe:
    if isinstance(recipe, Cast):
        return recipe.of if dtype_of(recipe.of) in PACKED_FROM else recipe
    if isinstance(recipe, Concat | Stack):
        parts = tuple(_without_casts(part, dtype_of) for part in recipe.parts)
        if len({dtype_of(part) for part in parts}) == 1:
            return msgspec.structs.replace(recipe, parts=parts)
    return recipe


def _plain(recipe: Source, lookup: SourceLookup) -> Result:
    shape, encoding = lookup(recipe.name)
    if encoding not in PLAIN_ENCODINGS:
        raise ValueError(f"source {recipe.name!r} is encoded as {encoding} and not dequantized")
    return shape, PLAIN_ENCODINGS[encoding]


FLOAT8 = "F8_E4M3"
"""The encoding of 8-bit floats that have scales."""

SCALE_ENCODINGS = ("F32", "BF16", "F16")


def scale_shape(shape: Sequence[int], scales: Scales) -> tuple[int, ...]:
    """One scale for each block of the last two dimensions, those at their ends may be smaller."""
    *others, rows, columns = shape
    return (*others, -(-rows // scales.rows), -(-columns // scales.columns))


def _check_scales(recipe: Dequantize | Blocks, lookup: SourceLookup) -> None:
    shape, encoding = lookup(recipe.of.name)
    scales = recipe.scales
    if (scales is None) == (encoding == FLOAT8):
        raise ValueError(f"source {recipe.of.name!r} of {encoding} with{'out' if scales is None else ''} scales")
    if scales is None:
        return
    found, kind = lookup(scales.of.name)
    if len(shape) < 2 or scales.rows < 1 or scales.columns < 1 or kind not in SCALE_ENCODINGS:
        raise ValueError(f"scales {scales.of.name!r} of {kind} for each {scales.rows} x {scales.columns} of {list(shape)}")
    expected = scale_shape(shape, scales)
    if prod(found) != prod(expected):
        raise ValueError(f"scales {scales.of.name!r} of {list(found)} where {list(expected)} belong to {list(shape)}")


def _blocks(recipe: Blocks, lookup: SourceLookup) -> Result:
    shape, encoding = lookup(recipe.of.name)
    _check_scales(recipe, lookup)
    dtype = encoding.lower() if recipe.scales is None else "e4m3_128"
    if dtype not in BLOCKS or len(shape) < 2 or shape[-1] % BLOCKS[dtype][0]:
        raise ValueError(f"source {recipe.of.name!r} of {encoding}{list(shape)} is not rows of known blocks")
    return shape, dtype


def _quantized(recipe: Quantize, shape: tuple[int, ...], dtype: str) -> Result:
    if recipe.dtype not in WEIGHT_BLOCKS:
        raise ValueError(f"quantize to unknown type {recipe.dtype!r}")
    if (dtype, recipe.dtype) != ("q4_k", "q4_1"):
        _floating("quantize", shape, dtype)
    if len(shape) < 2 or shape[-1] % BLOCKS[recipe.dtype][0]:
        raise ValueError(f"quantize {list(shape)} to blocks of {BLOCKS[recipe.dtype][0]}")
    return shape, recipe.dtype


def _floating(step: str, shape: tuple[int, ...], dtype: str) -> Result:
    if dtype in BLOCKS:
        raise ValueError(f"{step} of {dtype} blocks")
    return shape, dtype


def _rows_only(step: str, dimension: int, shape: tuple[int, ...], dtype: str) -> None:
    """Blocks lie along the last dimension, so nothing may be cut or joined there, but in `part` where all of them stay whole."""
    if dtype in BLOCKS and dimension == len(shape) - 1:
        raise ValueError(f"{step} along the blocks of {dtype}{list(shape)}")


def _sliced(recipe: Slice, shape: tuple[int, ...], dtype: str) -> Result:
    _check_dimension("slice", recipe.dimension, shape)
    _rows_only("slice", recipe.dimension, shape, dtype)
    extent = shape[recipe.dimension]
    if not 0 <= recipe.start < recipe.stop <= extent or recipe.stride < 1:
        raise ValueError(f"slice {recipe.start}:{recipe.stop}:{recipe.stride} of a dimension of {extent}")
    return _with_extent(shape, recipe.dimension, -(-(recipe.stop - recipe.start) // recipe.stride)), dtype


def _concatenated(recipe: Concat, parts: list[Result]) -> Result:
    if not parts:
        raise ValueError("concat of nothing")
    shape, dtype = parts[0]
    _check_dimension("concat", recipe.dimension, shape)
    _rows_only("concat", recipe.dimension, shape, dtype)
    for other, other_dtype in parts[1:]:
        same_rank = len(other) == len(shape)
        if (
            not same_rank
            or other_dtype != dtype
            or _with_extent(other, recipe.dimension, 0) != _with_extent(shape, recipe.dimension, 0)
        ):
            raise ValueError(f"concat of {dtype}{list(shape)} and {other_dtype}{list(other)} along dimension {recipe.dimension}")
    return _with_extent(shape, recipe.dimension, sum(part[recipe.dimension] for part, _ in parts)), dtype


def _stacked(recipe: Stack, parts: list[Result]) -> Result:
    if not parts:
        raise ValueError("stack of nothing")
    shape, dtype = parts[0]
    _check_dimension("stack", recipe.dimension, (0, *shape))
    if dtype in BLOCKS and recipe.dimension == len(shape):
        raise ValueError(f"stack along the blocks of {dtype}{list(shape)}")
    for other, other_dtype in parts[1:]:
        if (other, other_dtype) != (shape, dtype):
            raise ValueError(f"stack of {dtype}{list(shape)} and {other_dtype}{list(other)}")
    return (*shape[: recipe.dimension], len(parts), *shape[recipe.dimension :]), dtype


def _transposed(recipe: Transpose, shape: tuple[int, ...], dtype: str) -> Result:
    if sorted(recipe.permutation) != list(range(len(shape))):
        raise ValueError(f"transpose {list(recipe.permutation)} of {len(shape)} dimensions")
    _floating("transpose", shape, dtype)
    return tuple(shape[dimension] for dimension in recipe.permutation), dtype


def _unpermuted(recipe: UnpermuteRope, shape: tuple[int, ...], dtype: str) -> Result:
    if not shape or recipe.heads < 1 or shape[0] % (2 * recipe.heads):
        raise ValueError(f"unpermute_rope of {list(shape)} with {recipe.heads} heads")
    return shape, dtype


def _part(recipe: Part, shape: tuple[int, ...], dtype: str) -> Result:
    _check_dimension("part", recipe.dimension, shape)
    along = dtype in BLOCKS and recipe.dimension == len(shape) - 1
    of_block, end = BLOCKS[dtype][0] if along else 1, 0
    for stretch in recipe.stretches:
        if stretch.start != end or stretch.stop <= stretch.start or stretch.size < 1 or stretch.copies < 1:
            raise ValueError(f"part of stretch {stretch.start}:{stretch.stop} in parts of {stretch.size}")
        if stretch.stop % of_block or stretch.size % of_block:
            raise ValueError(f"part of {stretch.size} along the blocks of {dtype}{list(shape)}")
        end = stretch.stop
    if end != shape[recipe.dimension]:
        raise ValueError(f"parts of {end} entries of a dimension of {shape[recipe.dimension]}")
    return _with_extent(shape, recipe.dimension, sum(stretch.size for stretch in recipe.stretches)), dtype


def _check_dimension(step: str, dimension: int, shape: tuple[int, ...]) -> None:
    if not 0 <= dimension < len(shape):
        raise ValueError(f"{step} along dimension {dimension} of {len(shape)} dimensions")


def _with_extent(shape: tuple[int, ...], dimension: int, extent: int) -> tuple[int, ...]:
    return (*shape[:dimension], extent, *shape[dimension + 1 :])
