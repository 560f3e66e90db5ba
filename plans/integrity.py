"""Whether a manifest means something: references resolve, shapes and bytes agree, memory adds up.

`check_manifest` and `check_program` (program_integrity.py) are pure; a plan passes both before anything of it is used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from itertools import pairwise
from math import prod

from .container import ALIGNMENT, MANIFEST_NAME, WEIGHTS_PREFIX, is_safe_name
from .findings import MAX_NUMBER, require, require_number, require_shape, require_unique
from .names import read_only_names, weight_instances, writable_names
from .program import DTYPE_BYTES, step_inputs
from .program_integrity import check_program
from .recipe_shapes import SourceLookup, count_nodes, infer
from .schema import FORMAT_MAJOR, FORMAT_MINOR, Manifest, SourceTensor, Weight
from .template import instantiate, is_templated

__all__ = ["check_manifest", "check_program", "ranks"]

IDENTITY_TOKENS = 64
MAX_LAYERS = 4096
MAX_RANKS = 65536
MAX_RECIPE_STEPS = 4_000_000
REQUIRED_RATES = {"compute": "FLOP/s", "bandwidth": "B/s", "dispatch": "s"}

_HEX_DIGEST = re.compile(r"[0-9a-f]{64}")

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


def check_manifest(manifest: Manifest) -> None:
    """Raise `PlanError`, naming the field, if the manifest contradicts itself."""
    require(
        manifest.format[0] == FORMAT_MAJOR and 0 <= manifest.format[1] <= FORMAT_MINOR,
        "format",
        f"{FORMAT_MAJOR}.0 to {FORMAT_MAJOR}.{FORMAT_MINOR}",
        manifest.format,
    )
    require_number(manifest.functions_version, "functions_version", 1)
    sizes = _check_entries(manifest)
    _check_target(manifest)
    _check_model(manifest)
    _check_names(manifest)
    _check_schedule(manifest)
    _check_kv(manifest)
    _check_step_inputs(manifest)
    _check_programs(manifest, sizes)
    sources = _check_sources(manifest, sizes)
    _check_weights(manifest, sources)
    _check_constants(manifest, sizes)
    _check_memory(manifest)
    _check_performance(manifest)
    _check_tokenizer_and_goldens(manifest, sizes)


def ranks(manifest: Manifest) -> int:
    """Number of ranks: the sizes of the mesh's axes multiplied."""
    return prod(axis.size for axis in manifest.mesh)


def _check_entries(manifest: Manifest) -> dict[str, int]:
    names = [entry.name for entry in manifest.entries]
    require_unique(names, "entries")
    require(names == sorted(names), "entries", "names in ascending order", names)
    for entry in manifest.entries:
        require(is_safe_name(entry.name) and entry.name != MANIFEST_NAME, "entries", "a plain relative path", repr(entry.name))
        require_number(entry.size, f"entries, {entry.name}: size")
        require(
            _HEX_DIGEST.fullmatch(entry.sha256) is not None, f"entries, {entry.name}: sha256", "64 hex digits", repr(entry.sha256)
        )
    return {entry.name: entry.size for entry in manifest.entries}


def _require_entry(name: str, sizes: dict[str, int], where: str) -> None:
    require(name in sizes, where, "the name of an entry of this plan", repr(name))


def _check_target(manifest: Manifest) -> None:
    require(manifest.target.name != "" and manifest.target.kind != "", "target", "a name and a kind", manifest.target)
    require_unique(manifest.target.features, "target.features")
    require_unique((axis.name for axis in manifest.mesh), "mesh")
    for axis in manifest.mesh:
        require_number(axis.size, f"mesh, {axis.name}: size", 1, MAX_RANKS)
    require_number(ranks(manifest), "mesh", 1, MAX_RANKS)


def _check_model(manifest: Manifest) -> None:
    model = manifest.model
    for field in ("vocabulary", "hidden_size", "max_context"):
        require_number(getattr(model, field), f"model.{field}", 1)
    require_number(model.layers, "model.layers", 1, MAX_LAYERS)
    require_number(model.parameters, "model.parameters")
    for token in model.end_tokens:
        require_number(token, "model.end_tokens", 0, model.vocabulary - 1)
    if model.begin_token is not None:
        require_number(model.begin_token, "model.begin_token", 0, model.vocabulary - 1)
    require(model.begin_token is not None or not model.add_begin_token, "model.add_begin_token", "a begin_token to add", "none")


def _check_names(manifest: Manifest) -> None:
    """One namespace for everything an operand may name outside its program."""
    require_unique((weight.name for weight in manifest.weights), "weights")
    for weight in manifest.weights:
        _check_layers(weight.layers, f"weights, {weight.name}: layers", manifest)
        templated = is_templated(weight.name)
        require(
            templated == bool(weight.layers),
            f"weights, {weight.name}: layers",
            "layers exactly when the name has {i}",
            weight.layers,
        )
    require(
        sum(len(weight.layers) or 1 for weight in manifest.weights) <= MAX_RECIPE_STEPS, "weights", "fewer instances", "too many"
    )
    for group in manifest.kv.groups:
        _check_layers(group.layers, f"kv.groups, {group.name}: layers", manifest)
    require_unique([*read_only_names(manifest), *writable_names(manifest)], "names of operands")


def _check_layers(layers: tuple[int, ...], where: str, manifest: Manifest) -> None:
    require(all(0 <= layer < manifest.model.layers for layer in layers), where, f"0 to {manifest.model.layers - 1}", layers)
    require(all(one < other for one, other in pairwise(layers)), where, "ascending layers", layers)


def _check_schedule(manifest: Manifest) -> None:
    schedule = manifest.schedule
    for field in ("max_rows", "max_decode_rows", "max_sequences", "prefill_chunk"):
        require_number(getattr(schedule, field), f"schedule.{field}", 1)
    require_number(schedule.max_waiting, "schedule.max_waiting")
    for field in ("max_decode_rows", "prefill_chunk"):
        require_number(getattr(schedule, field), f"schedule.{field}", 1, schedule.max_rows)
    for name, value in schedule.traffic.items():
        require(math.isfinite(value), f"schedule.traffic.{name}", "a finite number", value)


def _check_step_inputs(manifest: Manifest) -> None:
    """The step ABI, at extents that hold what the schedule and the longest context need."""
    for item in manifest.step_inputs:
        require_shape(item.shape, f"step_inputs, {item.name}: shape")
        require(len(item.shape) >= 1, f"step_inputs, {item.name}: shape", "at least 1 dimension", 0)
    shapes = {item.name: item.shape for item in manifest.step_inputs}
    rows = shapes.get("token_ids", (0,))[0]
    sequences = shapes.get("logit_rows", (0,))[0]
    blocks = shapes.get("block_tables", (0,))[-1]
    expected = step_inputs(rows, sequences, blocks)
    got = [(item.name, item.dtype, item.shape) for item in manifest.step_inputs]
    require(tuple(manifest.step_inputs) == expected, "step_inputs", "the step ABI of this format (docs/plan-format.md)", got)
    require_number(rows, "step_inputs, token_ids: shape", manifest.schedule.max_rows)
    require_number(sequences, "step_inputs, logit_rows: shape", manifest.schedule.max_sequences)
    needed = -(-manifest.model.max_context // manifest.kv.block_tokens)
    require_number(blocks, "step_inputs, block_tables: shape", needed)


def _check_programs(manifest: Manifest, sizes: dict[str, int]) -> None:
    require_unique((program.name for program in manifest.programs), "programs")
    for program in manifest.programs:
        where = f"programs, {program.name}"
        _require_entry(program.entry, sizes, f"{where}: entry")
        require_number(program.rank, f"{where}: rank", 0, ranks(manifest) - 1)
        require_number(program.max_rows, f"{where}: max_rows", 1)
    largest: dict[tuple[str, int], int] = {}
    for program in manifest.programs:
        largest[program.role, program.rank] = max(program.max_rows, largest.get((program.role, program.rank), 0))
    for rank in range(ranks(manifest)):
        for role in ("step", "sample"):
            require((role, rank) in largest, "programs", f"a {role} program for rank {rank}", "none")
        require_number(largest["step", rank], f"programs, step, rank {rank}: max_rows", manifest.schedule.max_rows)


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
        require(_HEX_DIGEST.fullmatch(source.digest) is not None, f"{where}: digest", "64 hex digits", repr(source.digest))
    if source.entry is not None:
        _require_entry(source.entry, sizes, f"{where}: entry")
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


def _check_weights(manifest: Manifest, sources: dict[str, SourceTensor]) -> None:
    for weight in manifest.weights:
        where = f"weights, {weight.name}"
        require_shape(weight.shape, f"{where}: shape")
        expected = prod(weight.shape) * DTYPE_BYTES[weight.dtype]
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


def _check_recipe(weight: Weight, sources: dict[str, SourceTensor]) -> None:
    """For every layer, the recipe gives the weight's shape and dtype."""
    promised = (weight.shape, weight.dtype)
    for name, layer in weight_instances(weight):
        where = f"weights, {name}: recipe"
        try:
            found = infer(weight.recipe, _lookup(sources, layer if weight.layers else None))
        except ValueError as error:
            require(False, where, "steps that can be done on its sources", error)
        else:
            require(found == promised, where, f"{weight.dtype}{list(weight.shape)}", f"{found[1]}{list(found[0])}")


def _lookup(sources: dict[str, SourceTensor], layer: int | None) -> SourceLookup:
    def find(name: str) -> tuple[tuple[int, ...], str]:
        full = name if layer is None else instantiate(name, layer)
        if full not in sources:
            raise ValueError(f"no source {full!r}")
        return sources[full].shape, sources[full].encoding

    return find


def _check_constants(manifest: Manifest, sizes: dict[str, int]) -> None:
    for constant in manifest.constants:
        where = f"constants, {constant.name}"
        require_shape(constant.shape, f"{where}: shape")
        _require_entry(constant.entry, sizes, f"{where}: entry")
        expected = prod(constant.shape) * DTYPE_BYTES[constant.dtype]
        require(sizes[constant.entry] == expected, f"{where}: entry", f"{expected} bytes", f"{sizes[constant.entry]} bytes")
    for buffer in manifest.slot_buffers:
        require_shape(buffer.shape, f"slot_buffers, {buffer.name}: shape")


def _check_kv(manifest: Manifest) -> None:
    kv = manifest.kv
    require(kv.identity_tokens == IDENTITY_TOKENS, "kv.identity_tokens", IDENTITY_TOKENS, kv.identity_tokens)
    divides = kv.block_tokens >= 1 and kv.identity_tokens % kv.block_tokens == 0
    require(divides, "kv.block_tokens", f"a divisor of {kv.identity_tokens}", kv.block_tokens)
    require_number(kv.blocks, "kv.blocks", 1)
    require(kv.compatibility != "", "kv.compatibility", "a digest", "nothing")
    require_unique((group.name for group in kv.groups), "kv.groups")
    per_block = 0
    for group in kv.groups:
        where = f"kv.groups, {group.name}"
        for field in ("heads", "head_dim"):
            require_number(getattr(group, field), f"{where}: {field}", 1)
        if group.window is not None:
            require_number(group.window, f"{where}: window", 1)
        per_block += 2 * len(group.layers) * kv.block_tokens * group.heads * group.head_dim * DTYPE_BYTES[group.dtype]
    require(kv.bytes_per_block == per_block, "kv.bytes_per_block", per_block, kv.bytes_per_block)


def _check_memory(manifest: Manifest) -> None:
    memory = manifest.memory
    for field in memory.__struct_fields__:
        require_number(getattr(memory, field), f"memory.{field}")
    pool = manifest.kv.blocks * manifest.kv.bytes_per_block
    require(memory.kv == pool, "memory.kv", f"{pool} (blocks x bytes_per_block)", memory.kv)
    weights = [weight.bytes for weight in manifest.weights for _ in range(len(weight.layers) or 1)]
    _check_sum(memory.weights, weights, "memory.weights")
    arrays = {"constants": manifest.constants, "inputs": manifest.step_inputs, "slots": manifest.slot_buffers}
    for field, items in arrays.items():
        sizes = [prod(extent for extent in item.shape if isinstance(extent, int)) * DTYPE_BYTES[item.dtype] for item in items]
        _check_sum(getattr(memory, field), sizes, f"memory.{field}")
    require(memory.total <= MAX_NUMBER, "memory", f"at most {MAX_NUMBER} bytes", memory.total)


def _check_sum(planned: int, sizes: list[int], where: str) -> None:
    """The planned bytes are those of the arrays, each exact or rounded up to the alignment."""
    exact, rounded = sum(sizes), sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)
    require(exact <= planned <= rounded, where, f"{exact} to {rounded}, the sum of what it holds", planned)


def _check_performance(manifest: Manifest) -> None:
    performance = manifest.performance
    for name in REQUIRED_RATES:
        require(
            name in performance.rates,
            "performance.rates",
            f"a rate {name!r} in {REQUIRED_RATES[name]}",
            sorted(performance.rates),
        )
    for name, rate in performance.rates.items():
        require(math.isfinite(rate.value) and rate.value > 0, f"performance.rates.{name}", "a positive number", rate.value)
    rows = [cost.rows for cost in performance.step_costs]
    require(bool(rows) and rows[0] >= 1, "performance.step_costs", "at least one row of costs", rows)
    ascending = all(one < other for one, other in pairwise(rows))
    require(ascending, "performance.step_costs", "ascending rows", rows)
    for cost in performance.step_costs:
        require_number(cost.rows, "performance.step_costs: rows", 1)
        require_number(cost.instructions, f"performance.step_costs, {cost.rows} rows: instructions")
        figures = (cost.flops, cost.weight_bytes, cost.activation_bytes)
        _check_figures(figures, f"performance.step_costs, {cost.rows} rows")
    _check_figures((performance.attention_flops_per_token_pair, performance.kv_bytes_per_token), "performance")
    _check_figures(performance.predictions.values(), "performance.predictions")


def _check_figures(figures: Iterable[float], where: str) -> None:
    for figure in figures:
        require(math.isfinite(figure) and figure >= 0, where, "numbers that are not negative", figure)


def _check_tokenizer_and_goldens(manifest: Manifest, sizes: dict[str, int]) -> None:
    tokenizer = manifest.tokenizer
    if tokenizer is not None:
        _require_entry(tokenizer.entry, sizes, "tokenizer.entry")
        if tokenizer.chat_template_entry:
            _require_entry(tokenizer.chat_template_entry, sizes, "tokenizer.chat_template_entry")
    require_unique((golden.name for golden in manifest.goldens), "goldens")
    for golden in manifest.goldens:
        _require_entry(golden.entry, sizes, f"goldens, {golden.name}: entry")
