"""Whether a manifest's checkpoint tensors and weights agree: bytes with shapes, recipes with what they promise."""

from __future__ import annotations

from math import prod

from .container import WEIGHTS_PREFIX
from .digests import DIGEST_CHUNK_BYTES, digest_of_chunks
from .findings import HEX_DIGEST, require, require_entry, require_number, require_shape, require_unique
from .names import weight_instances
from .program import DTYPE_BYTES
from .recipe import Addend, Part, Recipe, inputs_of
from .recipe_shapes import count_nodes, infer, lookup_in
from .schema import Manifest, SourceTensor, Weight
from .weight_layout import stored_bytes

MAX_RECIPE_STEPS = 4_000_000

# GGUF block types: elements and bytes of one block (ggml quantisation formats).
_BLOCKS = {
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
}
_PLAIN_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1}
_PLAIN_BYTES |= {"F8_E4M3": 1, "F8_E5M2": 1}


def check_weights(manifest: Manifest, sizes: dict[str, int]) -> None:
    """Check `sources` and `weights`; `sizes` are the bytes of the plan's entries. Raises `PlanError` naming the field."""
    _check_weight_recipes(manifest, _check_sources(manifest, sizes))


def _check_sources(manifest: Manifest, sizes: dict[str, int]) -> dict[str, SourceTensor]:
    require_unique((source.name for source in manifest.sources), "sources")
    bound = sum(source.digest is not None for source in manifest.sources)
    require(
        bound in (0, len(manifest.sources)),
        "sources",
        "digests for all sources or for none",
        f"{bound} of {len(manifest.sources)}",
    )
    for source in manifest.sources:
        _check_source(source, sizes)
    return {source.name: source for source in manifest.sources}


def _check_source(source: SourceTensor, sizes: dict[str, int]) -> None:
    where = f"sources, {source.name}"
    require_shape(source.shape, f"{where}: shape")
    require_number(source.bytes, f"{where}: bytes")
    expected = _encoded_bytes(source)
    require(expected is None or source.bytes == expected, f"{where}: bytes", expected, source.bytes)
    if source.digest is not None:
        require(HEX_DIGEST.fullmatch(source.digest) is not None, f"{where}: digest", "64 hex digits", repr(source.digest))
    if source.chunks:
        expected = -(-source.bytes // DIGEST_CHUNK_BYTES)
        require(len(source.chunks) == expected > 1, f"{where}: chunks", f"{expected} digests, or none", len(source.chunks))
        for chunk in source.chunks:
            require(HEX_DIGEST.fullmatch(chunk) is not None, f"{where}: chunks", "64 hex digits each", repr(chunk))
        require(source.digest == digest_of_chunks(source.chunks), f"{where}: digest", "that of its chunks", repr(source.digest))
    if source.entry is not None:
        require_entry(source.entry, sizes, f"{where}: entry")
        require(source.entry.startswith(WEIGHTS_PREFIX), f"{where}: entry", f"a name under {WEIGHTS_PREFIX}", repr(source.entry))
        require(sizes[source.entry] == source.bytes, f"{where}: entry", f"{source.bytes} bytes", f"{sizes[source.entry]} bytes")


def _encoded_bytes(source: SourceTensor) -> int | None:
    """Stored bytes of a source, None if its encoding is not known here (its recipe's kernel then decides)."""
    elements = prod(source.shape)
    if source.encoding in _PLAIN_BYTES:
        return elements * _PLAIN_BYTES[source.encoding]
    if source.encoding not in _BLOCKS:
        return None
    per_block, block_bytes = _BLOCKS[source.encoding]
    where = f"sources, {source.name}: shape"
    require(
        bool(source.shape) and source.shape[-1] % per_block == 0,
        where,
        f"rows of whole blocks of {per_block}",
        list(source.shape),
    )
    return elements // per_block * block_bytes


def _check_weight_recipes(manifest: Manifest, sources: dict[str, SourceTensor]) -> None:
    for weight in manifest.weights:
        where = f"weights, {weight.name}"
        require_shape(weight.shape, f"{where}: shape")
        packed = weight.prepack in {"panel", "planes"}
        require(
            packed or weight.dtype in DTYPE_BYTES,
            f"{where}: prepack",
            f"panel or planes, for {weight.dtype} blocks",
            weight.prepack,
        )
        try:
            expected = stored_bytes(weight.shape, weight.dtype, weight.prepack)
        except ValueError as error:
            require(False, f"{where}: prepack", error, f"{weight.dtype}{list(weight.shape)} as {weight.prepack}")
            continue
        require(weight.bytes == expected, f"{where}: bytes", expected, weight.bytes)
    steps = 0
    for weight in manifest.weights:
        try:
            steps += count_nodes(weight.recipe) * (len(weight.layers) or 1)
        except ValueError as error:
            require(False, f"weights, {weight.name}: recipe", "a recipe of fewer steps", error)
        require(steps <= MAX_RECIPE_STEPS, "weights", f"at most {MAX_RECIPE_STEPS} recipe steps", "more")
    for weight in manifest.weights:
        _check_recipe(weight, sources)
        _check_parts(weight.recipe, {axis.name: axis.size for axis in manifest.mesh}, f"weights, {weight.name}: recipe")


def _check_recipe(weight: Weight, sources: dict[str, SourceTensor]) -> None:
    """For every layer, the recipe gives the weight's shape and dtype."""
    promised = (weight.shape, weight.dtype)
    for name, layer in weight_instances(weight):
        where = f"weights, {name}: recipe"
        try:
            found = infer(weight.recipe, lookup_in(sources, layer if weight.layers else None))
        except ValueError as error:
            require(False, where, "steps that can be done on its sources", error)
        else:
            require(found == promised, where, f"{weight.dtype}{list(weight.shape)}", f"{found[1]}{list(found[0])}")


def _check_parts(recipe: Recipe, mesh: dict[str, int], where: str) -> None:
    """The parts that the ranks have of a dimension are all of it, each once or once for every copy, none larger than needed."""
    if isinstance(recipe, Part | Addend):
        require(recipe.axis in mesh, where, f"an axis of the mesh: {', '.join(mesh)}", repr(recipe.axis))
    if isinstance(recipe, Part):
        ranks = mesh[recipe.axis]
        for stretch in recipe.stretches:
            size = stretch.stop - stretch.start
            require(ranks % stretch.copies == 0, where, f"copies that divide {ranks} ranks", stretch.copies)
            expected = -(-size * stretch.copies // ranks)
            require(stretch.size == expected, where, f"{expected} of {size} entries for each of {ranks} ranks", stretch.size)
    for inner in inputs_of(recipe):
        _check_parts(inner, mesh, where)
