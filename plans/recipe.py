"""Recipes: how a plan's weight is made from checkpoint tensors, from a closed set of steps.

Programs name only the result. Inside a templated weight, source names carry `{i}`, `{i+1}`, ... for the layer index.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="source", tag_field="step"):
    """A checkpoint tensor by its name in the checkpoint, in row-major order, still encoded as it lies in the file."""

    name: str


class Slice(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="slice", tag_field="step"):
    """Entries `start`, `start + stride`, ... below `stop` of a dimension."""

    of: Recipe
    dimension: int
    start: int
    stop: int
    stride: int = 1


class Cast(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="cast", tag_field="step"):
    of: Recipe
    dtype: str


class Concat(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="concat", tag_field="step"):
    parts: tuple[Recipe, ...]
    dimension: int


class Stack(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="stack", tag_field="step"):
    """Values of one shape side by side along a new dimension, e.g. the experts of a layer."""

    parts: tuple[Recipe, ...]
    dimension: int


class Transpose(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="transpose", tag_field="step"):
    of: Recipe
    permutation: tuple[int, ...]


class UnpermuteRope(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="unpermute_rope", tag_field="step"):
    """GGUF stores llama q/k rows interleaved per head; give back the half-split order of Hugging Face.

    Rows are viewed as (heads, head_dim / 2, 2) and the last two axes are swapped.
    """

    of: Recipe
    heads: int


class Scales(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The factors of a source's 8-bit floats: a tensor with one for each `rows` x `columns` of the last two dimensions."""

    of: Source
    rows: int
    columns: int


class Dequantize(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="dequantize", tag_field="step"):
    """Decode a source to float32 by the encoding its own `SourceTensor` declares (layers of one model may differ).

    8-bit floats are multiplied by their `scales`."""

    of: Source
    scales: Scales | None = None


class Blocks(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="blocks", tag_field="step"):
    """A block-quantised source as it lies in the file: its type is its encoding's. Steps that only move whole blocks may follow.

    8-bit floats and their `scales` become blocks of e4m3_128, which restate them exactly."""

    of: Source
    scales: Scales | None = None


class Quantize(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="quantize", tag_field="step"):
    """Round to blocks of `dtype` as ggml's reference quantisers do, or restate q4_k blocks as q4_1. Only as the last step."""

    of: Recipe
    dtype: str


class Stretch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Entries [start, stop) of a dimension that are cut among ranks by themselves: `size` for each, `copies` neighbours alike."""

    start: int
    stop: int
    size: int
    copies: int = 1

    def of_rank(self, coordinate: int) -> tuple[int, int]:
        """First entry of a rank's part and the one behind its last; zeros fill the part up to `size`."""
        first = min(self.start + coordinate // self.copies * self.size, self.stop)
        return first, min(first + self.size, self.stop)


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="part", tag_field="step"):
    """What a rank has of a dimension that mesh axis `axis` cuts: its part of each stretch, behind each other."""

    of: Recipe
    axis: str
    dimension: int
    stretches: tuple[Stretch, ...]


class Addend(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="addend", tag_field="step"):
    """A part of a sum over the ranks of mesh axis `axis`: the value on the first of them, zeros on the others."""

    of: Recipe
    axis: str


class Numbers(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="numbers", tag_field="step"):
    """The numbers from 0 to `count` - 1, in i32: a rank that has a part of them knows which part it has of what they number."""

    count: int


Recipe = (
    Source | Slice | Cast | Concat | Stack | Transpose | UnpermuteRope | Dequantize | Blocks | Quantize | Part | Addend | Numbers
)


def decoded(recipe: Recipe) -> Recipe:
    """The recipe with blocks decoded to float32 where it keeps them."""
    if isinstance(recipe, Blocks):
        return Dequantize(recipe.of, recipe.scales)
    if isinstance(recipe, Source | Dequantize | Numbers):
        return recipe
    if isinstance(recipe, Concat | Stack):
        return msgspec.structs.replace(recipe, parts=tuple(decoded(part) for part in recipe.parts))
    return msgspec.structs.replace(recipe, of=decoded(recipe.of))


def inputs_of(recipe: Recipe) -> tuple[Recipe, ...]:
    """The recipes whose values a step takes."""
    if isinstance(recipe, Source | Numbers):
        return ()
    if isinstance(recipe, Dequantize | Blocks):
        return (recipe.of,) if recipe.scales is None else (recipe.of, recipe.scales.of)
    return recipe.parts if isinstance(recipe, Concat | Stack) else (recipe.of,)


def sources(recipe: Recipe) -> tuple[str, ...]:
    """Names of the checkpoint tensors a recipe reads, in order of reading."""
    return (recipe.name,) if isinstance(recipe, Source) else tuple(name for part in inputs_of(recipe) for name in sources(part))


def map_sources(recipe: Recipe, change: Callable[[Source], Source | Dequantize | Blocks]) -> Recipe:
    """The recipe with every source replaced; there are no blocks in it."""
    if isinstance(recipe, Source):
        return change(recipe)
    if isinstance(recipe, Numbers):
        return recipe
    if isinstance(recipe, Concat | Stack):
        return msgspec.structs.replace(recipe, parts=tuple(map_sources(part, change) for part in recipe.parts))
    return msgspec.structs.replace(recipe, of=map_sources(recipe.of, change))
