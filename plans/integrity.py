"""Whether a manifest means something: references resolve, shapes and bytes agree, memory adds up.

`check_manifest` and `check_program` (program_integrity.py) are pure; a plan passes both before anything of it is used.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from math import prod

from .container import ALIGNMENT, MANIFEST_NAME, is_safe_name
from .device_integrity import check_device
from .errors import PlanError
from .findings import HEX_DIGEST, MAX_NUMBER, require, require_entry, require_number, require_shape, require_unique
from .host_tier import HOST_LINK
from .kv_caches import block_bytes, state_bytes
from .names import read_only_names, writable_names
from .program import DTYPE_BYTES, step_inputs
from .program_integrity import check_program
from .schema import FORMAT_MAJOR, FORMAT_MINOR, Manifest, StateGroup
from .stage_integrity import check_stages
from .stages import of_stage, stage_of
from .template import is_templated
from .weight_integrity import check_weights

__all__ = ["check_manifest", "check_program", "ranks"]

IDENTITY_TOKENS = 64
MAX_LAYERS = 4096
MAX_RANKS = 65536
MAX_STATES = 64
MAX_WINDOWS = 64
MAX_INSTANCES = 4_000_000
REQUIRED_RATES = {"compute": "FLOP/s", "bandwidth": "B/s", "dispatch": "s"}


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
    check_stages(manifest)
    _check_programs(manifest, sizes)
    check_weights(manifest, sizes)
    _check_constants(manifest, sizes)
    for stage in range(len(manifest.stages)):
        _check_stage(manifest, stage)
    if not manifest.stages:
        _check_memory(manifest)
    _check_performance(manifest)
    _check_tokenizer_and_goldens(manifest, sizes)
    _check_kernels(manifest, sizes)
    check_device(manifest, sizes)


def _check_stage(manifest: Manifest, number: int) -> None:
    """What is true of a whole plan is true of each stage: memory adds up, costs are numbers."""
    stage = of_stage(manifest, number)
    try:
        _check_memory(stage)
        _check_performance(stage)
    except PlanError as error:
        where = f"stages, {number}, {error.where}"
        raise PlanError(error.what, where=where, expected=error.expected, got=error.got, fix=error.fix) from None


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
            HEX_DIGEST.fullmatch(entry.sha256) is not None, f"entries, {entry.name}: sha256", "64 hex digits", repr(entry.sha256)
        )
    return {entry.name: entry.size for entry in manifest.entries}


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
    for weight in manifest.weights:
        _check_layers(weight.layers, f"weights, {weight.name}: layers", manifest.model.layers)
        templated = is_templated(weight.name)
        require(
            templated == bool(weight.layers),
            f"weights, {weight.name}: layers",
            "layers exactly when the name has {i}",
            weight.layers,
        )
    require(
        sum(len(weight.layers) or 1 for weight in manifest.weights) <= MAX_INSTANCES, "weights", "fewer instances", "too many"
    )
    for group in manifest.kv.groups:
        # a layer may have several caches
        _check_layers(group.layers, f"kv.groups, {group.name}: layers", MAX_LAYERS)
    for group in manifest.kv.states:
        _check_states(group, manifest)
    require_unique([*read_only_names(manifest), *writable_names(manifest)], "names of operands")


def _check_states(group: StateGroup, manifest: Manifest) -> None:
    where = f"kv.states, {group.name}"
    _check_layers(group.layers, f"{where}: layers", manifest.model.layers)
    require_number(group.slots, f"{where}: slots", manifest.schedule.max_sequences)
    require(0 < len(group.shapes) <= MAX_STATES, f"{where}: shapes", f"1 to {MAX_STATES} states", len(group.shapes))
    require(len(group.shapes) == len(group.dtypes), f"{where}: dtypes", f"{len(group.shapes)} types", len(group.dtypes))
    for shape in group.shapes:
        require_shape(shape, f"{where}: shapes")


def _check_layers(layers: tuple[int, ...], where: str, count: int) -> None:
    require(all(0 <= layer < count for layer in layers), where, f"0 to {count - 1}", layers)
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
    expected = step_inputs(rows, sequences, blocks, len(manifest.kv.windows))
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
        require_entry(program.entry, sizes, f"{where}: entry")
        for rank in program.ranks:
            require_number(rank, f"{where}: rank", 0, ranks(manifest) - 1)
        require_unique(map(str, program.ranks), f"{where}: others")
        require_number(program.max_rows, f"{where}: max_rows", 1)
    largest: dict[tuple[str, int], int] = {}
    for role, rank, rows in ((program.role, rank, program.max_rows) for program in manifest.programs for rank in program.ranks):
        largest[role, rank] = max(rows, largest.get((role, rank), 0))
    for program in manifest.programs:
        of = {stage_of(manifest, rank) for rank in program.ranks}
        require(len(of) == 1, f"programs, {program.name}: ranks", "ranks of one stage", program.ranks)
        require_number(program.shift, f"programs, {program.name}: shift", 0, MAX_LAYERS)
        require(manifest.stages != () or not program.shift, f"programs, {program.name}: shift", "0 without stages", program.shift)
    for rank in range(ranks(manifest)):
        # the last stage alone has logits
        samples = stage_of(manifest, rank) == max(0, len(manifest.stages) - 1)
        for role in ("step", "sample") if samples else ("step",):
            require((role, rank) in largest, "programs", f"a {role} program for rank {rank}", "none")
        require(samples or ("sample", rank) not in largest, "programs", f"no sample program for rank {rank}", "one")
        require_number(largest["step", rank], f"programs, step, rank {rank}: max_rows", manifest.schedule.max_rows)


def _check_constants(manifest: Manifest, sizes: dict[str, int]) -> None:
    for constant in manifest.constants:
        where = f"constants, {constant.name}"
        require_shape(constant.shape, f"{where}: shape")
        require_entry(constant.entry, sizes, f"{where}: entry")
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
    require_number(kv.host_blocks, "kv.host_blocks")
    away = "0 with recurrent states, which are in no block"
    require(not any(kv.pool_host_blocks) or kv.shares_prefixes, "kv.host_blocks", away, kv.host_blocks)
    require_number(kv.host_bytes, "kv.host_blocks: bytes")
    require(kv.compatibility != "", "kv.compatibility", "a digest", "nothing")
    require_unique((group.name for group in kv.groups), "kv.groups")
    per_block = [0] * (1 + len(kv.windows))
    require(len(kv.windows) <= MAX_WINDOWS, "kv.windows", f"at most {MAX_WINDOWS} pools", len(kv.windows))
    for number, pool in enumerate(kv.windows, 1):
        for field in ("window", "blocks"):
            require_number(getattr(pool, field), f"kv.windows, {number}: {field}", 1)
        require_number(pool.host_blocks, f"kv.windows, {number}: host_blocks")
    require_unique((str(pool.window) for pool in kv.windows), "kv.windows")
    for group in kv.groups:
        where = f"kv.groups, {group.name}"
        for field in ("heads", "head_dim"):
            require_number(getattr(group, field), f"{where}: {field}", 1)
        if group.window is not None:
            require_number(group.window, f"{where}: window", 1)
        require(group.kind != "latent" or group.heads == 1, f"{where}: heads", "1 of a latent group", group.heads)
        ordered = group.kind == "paged" or group.block_order == "token_major"
        require(ordered, f"{where}: block_order", "token_major of a latent group", group.block_order)
        require_number(group.pool, f"{where}: pool", 0, len(kv.windows))
        if group.pool:
            window = kv.windows[group.pool - 1].window
            require(group.window == window, f"{where}: window", f"{window}, that of its pool", group.window)
        per_block[group.pool] += block_bytes(group, kv.block_tokens)
    require_unique((group.name for group in kv.states), "kv.states")
    for number, (expected, size) in enumerate(zip(per_block, kv.pool_block_bytes, strict=True)):
        where = f"kv.windows, {number}: bytes_per_block" if number else "kv.bytes_per_block"
        require(size == expected, where, expected, size)


def _check_memory(manifest: Manifest) -> None:
    memory = manifest.memory
    for field in memory.__struct_fields__:
        require_number(getattr(memory, field), f"memory.{field}")
    pools = manifest.kv.bytes
    require(memory.kv == pools, "memory.kv", f"{pools} (blocks x bytes_per_block of all pools)", memory.kv)
    alignment = 1 if manifest.device is None else ALIGNMENT
    states = sum(state_bytes(group, alignment) for group in manifest.kv.states)
    require(memory.states == states, "memory.states", f"{states}, the bytes of kv.states", memory.states)
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
    known = not any(manifest.kv.pool_host_blocks) or HOST_LINK in performance.rates
    require(known, "performance.rates", f"a rate {HOST_LINK!r} in B/s, for kv.host_blocks", sorted(performance.rates))
    for name, rate in performance.rates.items():
        require(math.isfinite(rate.value) and rate.value > 0, f"performance.rates.{name}", "a positive number", rate.value)
    overlap = performance.rates.get("overlap")
    require(overlap is None or overlap.value >= 1, "performance.rates.overlap", "at least 1", overlap and overlap.value)
    rows = [cost.rows for cost in performance.step_costs]
    require(bool(rows) and rows[0] >= 1, "performance.step_costs", "at least one row of costs", rows)
    ascending = all(one < other for one, other in pairwise(rows))
    require(ascending, "performance.step_costs", "ascending rows", rows)
    for cost in performance.step_costs:
        require_number(cost.rows, "performance.step_costs: rows", 1)
        require_number(cost.instructions, f"performance.step_costs, {cost.rows} rows: instructions")
        figures = (cost.flops, cost.weight_bytes, cost.activation_bytes)
        _check_figures((*figures, cost.attention_rows), f"performance.step_costs, {cost.rows} rows")
        for share in ("attention_share", "products_share"):
            where, value = f"performance.step_costs, {cost.rows} rows: {share}", getattr(cost, share)
            require(0 < value <= 1, where, "a number above 0, at most 1", value)
    _check_figures((performance.attention_flops_per_token_pair, performance.kv_bytes_per_token), "performance")
    _check_figures(performance.predictions.values(), "performance.predictions")


def _check_figures(figures: Iterable[float], where: str) -> None:
    for figure in figures:
        require(math.isfinite(figure) and figure >= 0, where, "numbers that are not negative", figure)


def _check_tokenizer_and_goldens(manifest: Manifest, sizes: dict[str, int]) -> None:
    tokenizer = manifest.tokenizer
    if tokenizer is not None:
        require_entry(tokenizer.entry, sizes, "tokenizer.entry")
        if tokenizer.chat_template_entry:
            require_entry(tokenizer.chat_template_entry, sizes, "tokenizer.chat_template_entry")
    require_unique((golden.name for golden in manifest.goldens), "goldens")
    for golden in manifest.goldens:
        require_entry(golden.entry, sizes, f"goldens, {golden.name}: entry")


def _check_kernels(manifest: Manifest, sizes: dict[str, int]) -> None:
    library = manifest.kernels
    if library is None:
        return
    require_entry(library.entry, sizes, "kernels.entry")
    require(library.entry.startswith("kernels/"), "kernels.entry", "a name under kernels/", repr(library.entry))
    require_number(library.interface, "kernels.interface", 1)
    require_unique(library.kernels, "kernels.kernels")
