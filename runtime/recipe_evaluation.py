"""Evaluates recipes (plans/recipe.py) in torch."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import assert_never

import numpy as np
import torch

from ..plans.errors import PlanError
from ..plans.recipe import Blocks, Cast, Concat, Dequantize, Quantize, Recipe, Slice, Source, Transpose, UnpermuteRope
from ..plans.recipe_shapes import PLAIN_ENCODINGS
from ..plans.schema import SourceTensor
from ..plans.template import instantiate
from .device_arrays import TORCH_TYPES

_DEQUANTIZE_ROWS = 512
_DEQUANTIZE_THREADS = 2


@dataclass(frozen=True)
class Stored:
    """A source as declared, and its stored bytes."""

    source: SourceTensor
    data: memoryview

    @property
    def digest(self) -> str | None:
        return self.source.digest


def evaluate(recipe: Recipe, stored: Mapping[str, Stored], layer: int | None, weight: str) -> torch.Tensor:
    """The value of a recipe for layer `layer` (None: names are not templates); may be a view. `weight` is for errors.

    Raises PlanError when a step cannot be done.
    """
    try:
        return _evaluate(recipe, stored, layer)
    except (RuntimeError, IndexError, ValueError, KeyError) as error:
        raise PlanError(
            "A recipe of the plan cannot be done.",
            where=weight,
            expected="steps that fit their sources",
            got=str(error).splitlines()[0] if str(error) else type(error).__name__,
            fix="compile the plan again",
        ) from None


def _evaluate(recipe: Recipe, stored: Mapping[str, Stored], layer: int | None) -> torch.Tensor:
    match recipe:
        case Source():
            return _plain(_find(recipe, stored, layer))
        case Dequantize():
            return _dequantized(_find(recipe.of, stored, layer))
        case Blocks():
            return _blocks(_find(recipe.of, stored, layer))
        case Quantize():
            raise ValueError("quantize is the last step, done while packing")
        case Cast():
            return _evaluate(recipe.of, stored, layer).to(TORCH_TYPES[recipe.dtype])
        case Slice():
            whole = _evaluate(recipe.of, stored, layer)
            return whole.narrow(recipe.dimension, recipe.start, recipe.stop - recipe.start)
        case Concat():
            return torch.cat([_evaluate(part, stored, layer) for part in recipe.parts], recipe.dimension)
        case Transpose():
            return _evaluate(recipe.of, stored, layer).permute(recipe.permutation)
        case UnpermuteRope():
            return _unpermuted(_evaluate(recipe.of, stored, layer), recipe.heads)
        case _:
            assert_never(recipe)


def _find(source: Source, stored: Mapping[str, Stored], layer: int | None) -> Stored:
    return stored[source.name if layer is None else instantiate(source.name, layer)]


def _plain(stored: Stored) -> torch.Tensor:
    """A copy of a source that is stored as plain numbers."""
    source = stored.source
    if source.encoding not in PLAIN_ENCODINGS:
        raise ValueError(f"{source.name} is encoded as {source.encoding} and not dequantized")
    values = torch.empty(source.shape, dtype=TORCH_TYPES[PLAIN_ENCODINGS[source.encoding]])
    np.copyto(values.view(-1).view(torch.uint8).numpy(), np.frombuffer(stored.data, np.uint8))
    return values


def _blocks(stored: Stored) -> torch.Tensor:
    """Rows of blocks as they lie in the file, [rows, bytes]."""
    rows = int(np.prod(stored.source.shape[:-1], dtype=np.int64))
    values = torch.empty(rows, len(stored.data) // rows, dtype=torch.uint8)
    np.copyto(values.view(-1).numpy(), np.frombuffer(stored.data, np.uint8))
    return values


def _dequantized(stored: Stored) -> torch.Tensor:
    """A source decoded to f32, blocks of rows in parallel."""
    source = stored.source
    if source.encoding in PLAIN_ENCODINGS:
        return _plain(stored).float()
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    kind = GGMLQuantizationType[source.encoding]
    width = source.shape[-1]
    rows = int(np.prod(source.shape[:-1], dtype=np.int64))
    encoded = np.frombuffer(stored.data, np.uint8).reshape(rows, -1)
    values = torch.empty(rows, width, dtype=torch.float32)
    target = values.numpy()

    def decode(start: int) -> None:
        stop = min(start + _DEQUANTIZE_ROWS, rows)
        target[start:stop] = dequantize(encoded[start:stop], kind)

    with ThreadPoolExecutor(_DEQUANTIZE_THREADS, "dequantize") as pool:
        list(pool.map(decode, range(0, rows, _DEQUANTIZE_ROWS)))
    return values.view(source.shape)


def _unpermuted(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """(heads, half, 2) rows to (heads, 2, half)."""
    if heads < 1 or rows.shape[0] % (2 * heads):
        raise ValueError(f"{list(rows.shape)} cannot be unpermuted for {heads} heads")
    pairs = rows.unflatten(0, (heads, rows.shape[0] // heads // 2, 2))
    return pairs.transpose(1, 2).reshape(rows.shape)
