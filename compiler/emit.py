"""emit: manifest and entries of the plan, from what the phases left."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch

from .. import __version__
from ..ir import module as modules
from ..passes.device_setting import decode_rows
from ..plans.device_kernels import DevicePlan
from ..plans.device_scratch import exchange_bytes, scratch_needed
from ..plans.errors import ModelError, UsageError
from ..plans.golden import encode_golden
from ..plans.integrity import IDENTITY_TOKENS
from ..plans.kv_caches import pool_block_bytes
from ..plans.mesh import groups_of
from ..plans.perf_model import predict_stages
from ..plans.program import FUNCTIONS_VERSION, NATIVE, StepInput, step_inputs
from ..plans.recipe import sources
from ..plans.recipe_shapes import packing_kinds
from ..plans.schema import (
    FORMAT_MAJOR,
    FORMAT_MINOR,
    Constant,
    Golden,
    KernelLibrary,
    KvGeometry,
    KvGroup,
    Manifest,
    MemoryPlan,
    Model,
    Performance,
    PlacementDecision,
    ProgramReference,
    Provenance,
    SourceTensor,
    StateGroup,
    Target,
    TokenizerReference,
    WindowPool,
)
from ..plans.template import instantiate
from ..targets.accelerator import Accelerator
from ..targets.cpu.build import INTERFACE, build_library, find_compiler, kernel_names, kernels_in
from ..targets.machine import Machine
from ..targets.registry import plugins
from ..targets.triton.packing import packing
from .device_section import device_section
from .frontends.config_fields import read_field
from .frontends.model_source import ModelSource
from .frontends.text_part import text_configuration
from .frontends.trace import TracedModel
from .goldens import Replayed, make_golden
from .identity import compiler_digest, library_versions
from .kv_geometry import compatibility, kv_groups, ordered, state_groups
from .kv_pools import Demand, Room, host_blocks, pool_blocks
from .library_memory import library_memory
from .memory import BLOCK_TOKENS, bytes_per_block, fixed_memory, with_kv
from .mesh import ranks_of
from .options import DEFAULT_CONTEXT, CompileOptions
from .performance import attention_flops, cost_rows, rates_of
from .stage_section import StageCosts, StageParts, parts_of_stages, shared_programs, stage_sections, whole_costs

if TYPE_CHECKING:
    from .pipeline import Compilation

KERNELS = "kernels/kernels.so"
_CONFIG_DTYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
_ENCODINGS = {"f32": "F32", "bf16": "BF16", "f16": "F16"}
_ENCODED_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1}


def choose_dtype(source: ModelSource, options: CompileOptions, machine: Machine) -> str:
    """The plan's element type: as asked, else the model's own where the target computes in it at full speed."""
    own = _config_dtype(source)
    if options.dtype != "auto":
        chosen = options.dtype
    else:
        fast = f"compute.{own}" in machine.rates and machine.compute_rate(own).value >= machine.compute_rate("f32").value
        chosen = own if fast else "f32"
    if f"compute.{chosen}" not in machine.rates:
        known = [name.removeprefix("compute.") for name in machine.rates if name.startswith("compute.")]
        raise UsageError(
            f"target {machine.name} does not compute in {chosen}", where="--dtype", expected=", ".join(known), got=chosen
        )
    return chosen


def _config_dtype(source: ModelSource) -> str:
    named = source.config.get("dtype") or source.config.get("torch_dtype") or "bfloat16"
    return _CONFIG_DTYPES.get(str(named), "bf16")


def choose_context(source: ModelSource, options: CompileOptions) -> int:
    """Longest sequence in tokens: as asked, within what the model was made for."""
    limit = int(read_field(text_configuration(source.config), "max_position_embeddings") or DEFAULT_CONTEXT)
    wanted = min(limit, DEFAULT_CONTEXT) if options.max_context is None else options.max_context
    if not 2 <= wanted <= limit:
        raise UsageError(
            "the model does not reach this context", where="--max-context", expected=f"2 to {limit}", got=str(wanted)
        )
    return wanted


def vocabulary(traced: TracedModel) -> int:
    """How many logits a row has; what configurations call the vocabulary may be another, an encoder's."""
    output = next(node for node in traced.exported.graph.nodes if node.op == "output")
    return int(output.args[0][0].meta["val"].shape[-1])


def emit(state: Compilation) -> tuple[Manifest, dict[str, Any]]:
    """The manifest (its entry table still empty) and the container's entries."""
    entries: dict[str, Any] = {}
    constants = _constants(state, entries)
    programs = state.programs
    kept = None if state.device is None else state.device.setting.kv_dtype
    windows = state.windows
    groups = ordered(kv_groups(state.module, kept, windows), programs)
    states = state_groups(state.module, state.limits.max_sequences)
    bound = _sources(state, entries)
    columns = -(-state.max_context // BLOCK_TOKENS)
    inputs = step_inputs(state.limits.max_rows, state.limits.max_sequences, columns, len(windows))
    native = all(program.is_native for program in programs)
    overhead = state.machine.native_overhead_bytes if native else state.machine.overhead_bytes
    memory = state.machine.memory_bytes if state.options.memory is None else state.options.memory
    device = _device(state, memory, bound, entries)
    parts = parts_of_stages(state.stages, programs, state.weights, groups, states)
    fixed = [_fixed(state, part, constants, inputs, overhead, device) for part in parts]
    rooms = [
        Room(of_stage, pool_block_bytes(part.groups, BLOCK_TOKENS, len(windows)))
        for of_stage, part in zip(fixed, parts, strict=True)
    ]
    demand = Demand(state.limits, state.max_context, windows, groups_of(state.mesh), len(parts))
    blocks = pool_blocks(rooms, demand, memory)
    memories = [
        with_kv(room.fixed, sum(count * size for count, size in zip(blocks, room.block_bytes, strict=True))) for room in rooms
    ]
    costs = [_costs(state, part) for part in parts]
    manifest = Manifest(
        format=(FORMAT_MAJOR, FORMAT_MINOR),
        minimum_runtime=__version__,
        functions_version=FUNCTIONS_VERSION,
        provenance=_provenance(state),
        target=_target(state.machine),
        mesh=state.mesh,
        model=_model(state),
        programs=_references(state, entries),
        step_inputs=inputs,
        slot_buffers=state.slots,
        sources=bound,
        weights=state.weights,
        constants=constants,
        kv=_geometry(state, groups, states, bound, blocks, host_blocks(state.options.host_kv, rooms, blocks, not states)),
        schedule=state.limits,
        memory=max(memories, key=lambda item: item.total),
        performance=_performance(state, costs),
        tokenizer=_tokenizer(state.source, entries),
        goldens=_goldens(state, bound, entries),
        kernels=_kernels(state),
        device=device,
        stages=() if len(parts) == 1 else stage_sections(parts, memories, costs),
        entries=(),
    )
    if manifest.kernels is not None:
        entries[manifest.kernels.entry] = _build(state)[1]
    entries["decisions.json"] = msgspec.json.encode(state.decisions)
    if state.layout:
        entries["placements.json"] = msgspec.json.encode(_layout(state))
    if state.candidates:
        entries["meshes.json"] = msgspec.json.encode(state.candidates)
    entries |= {f"ir/{number:02}-{name}.mlir": text.encode() for number, (name, text) in enumerate(state.ir_texts.items(), 1)}
    return manifest, entries


def _geometry(
    state: Compilation,
    groups: tuple[KvGroup, ...],
    states: tuple[StateGroup, ...],
    bound: Sequence[SourceTensor],
    blocks: Sequence[int],
    on_host: Sequence[int],
) -> KvGeometry:
    """`blocks` and those `on_host` are of each pool."""
    sizes = pool_block_bytes(groups, BLOCK_TOKENS, len(state.windows))
    return KvGeometry(
        identity_tokens=IDENTITY_TOKENS,
        block_tokens=BLOCK_TOKENS,
        blocks=blocks[0],
        bytes_per_block=sizes[0],
        compatibility=compatibility(groups, bound, state.traced.constants, state.traced.architecture, states),
        groups=groups,
        states=states,
        host_blocks=on_host[0],
        windows=tuple(
            WindowPool(window=window, blocks=count, bytes_per_block=size, host_blocks=host)
            for window, count, size, host in zip(state.windows, blocks[1:], sizes[1:], on_host[1:], strict=True)
        ),
    )


def _fixed(
    state: Compilation,
    part: StageParts,
    constants: Sequence[Constant],
    inputs: Sequence[StepInput],
    overhead: int,
    device: DevicePlan | None,
) -> MemoryPlan:
    """A stage's memory but for its KV pool."""
    scratch = None if device is None else scratch_needed(device, part.programs) + library_memory(part.programs, part.weights)
    return fixed_memory(
        part.weights,
        constants,
        part.programs,
        inputs,
        state.slots,
        overhead,
        part.states,
        scratch,
        ranks_of(state.mesh),
        0 if device is None else exchange_bytes(device.exchanges),
    )


def _device(state: Compilation, memory: int | None, bound: Sequence[SourceTensor], entries: dict[str, Any]) -> DevicePlan | None:
    """The device part of a plan for an accelerator, and the code of its kernels."""
    if state.device is None:
        return None
    assert memory is not None
    machine = state.device.setting.accelerator
    graphs = decode_rows(state.limits)
    loading = packing(packing_kinds(state.weights, bound))
    exchanges = [state.device.exchanges[name] for name in sorted(state.device.exchanges)]
    plan, binaries = device_section(machine, state.device.templates, state.programs, graphs, memory, loading, exchanges)
    entries.update(binaries)
    return plan


def _kernels(state: Compilation) -> KernelLibrary | None:
    """The library of native kernels, if the programs call any."""
    if not any(call.function.startswith(NATIVE) for program in state.programs for call in program.calls):
        return None
    compiler, _ = _build(state)
    names = tuple(sorted((*kernel_names(), *kernels_in(_more_sources(state)))))
    return KernelLibrary(entry=KERNELS, interface=INTERFACE, kernels=names, compiler=compiler)


def _build(state: Compilation) -> tuple[str, bytes]:
    """The C++ compiler and the shared object it gives."""
    compiler = find_compiler()
    assert compiler is not None
    more = _more_sources(state)
    try:
        return compiler.identity, build_library(compiler, state.machine.compiler_flags, tuple(more))
    except ModelError as error:
        if not more:
            raise
        names = ", ".join(sorted(set(more.values())))
        fix = f"{error.fix}; pip uninstall {names}, if it is its kernels that fail"
        raise ModelError(
            f"{error.what} Those of plugin {names} are among them.", where=error.where, got=error.got, fix=fix
        ) from error


def _more_sources(state: Compilation) -> dict[Path, str]:
    """C++ files of plugins whose kernels the step calls, each with its plugin's name."""
    return plugins().sources(call.function for step in state.steps for call in step.calls)


def _constants(state: Compilation, entries: dict[str, Any]) -> tuple[Constant, ...]:
    used = {
        modules.text_attribute(operation, "sym")
        for operation in modules.walk(modules.step_block(state.module))
        if operation.name == "ts.constant"
    }
    made = []
    for name in sorted(used):
        value = state.traced.constants[name].to(torch.float32).contiguous().numpy()
        entry = f"constants/{name}.bin"
        entries[entry] = value.astype("<f4").tobytes()
        made.append(Constant(name=name, dtype="f32", shape=value.shape, entry=entry))
    return tuple(made)


def _source_names(state: Compilation) -> list[str]:
    names = {
        instantiate(name, layer) for weight in state.weights for name in sources(weight.recipe) for layer in weight.layers or (0,)
    }
    return sorted(names)


def _sources(state: Compilation, entries: dict[str, Any]) -> tuple[SourceTensor, ...]:
    """The checkpoint tensors the plan reads: with digests when weights are at hand, else as the model declares them."""
    names = _source_names(state)
    source = state.source
    if source.checkpoint is None:
        if state.options.bundle_weights:
            raise ModelError("there are no weights to bundle", where=source.name, fix="give a model directory with weights")
        return _declared(state, names)
    bound = source.digests(names=names)
    if not state.options.bundle_weights:
        return bound
    packed = []
    for tensor in bound:
        entry = f"weights/{tensor.name}"
        entries[entry] = source.checkpoint.read(tensor.name)
        packed.append(msgspec.structs.replace(tensor, entry=entry))
    return tuple(packed)


def _declared(state: Compilation, names: list[str]) -> tuple[SourceTensor, ...]:
    traced, own = state.traced, _config_dtype(state.source)
    known: dict[str, tuple[str | None, tuple[int, ...]]] = {}
    for parameter, shape in traced.parameters.items():
        known |= state.source.declared_encodings(parameter, shape)
    declared = []
    for name in names:
        encoding, shape = known[name]
        encoding = encoding or _ENCODINGS["f32" if traced.names.is_single(name) else own]
        declared.append(SourceTensor(name=name, encoding=encoding, shape=shape, bytes=prod(shape) * _ENCODED_BYTES[encoding]))
    return tuple(declared)


def _provenance(state: Compilation) -> Provenance:
    options = {**state.options.spelled(), "target": state.machine.name}
    return Provenance(
        compiler_version=__version__,
        compiler_digest=compiler_digest(),
        inputs=dict(sorted(state.source.inputs.items())),
        options=options,
        libraries=library_versions(kernels=isinstance(state.machine, Accelerator)),
        plugins=plugins().behind(state.machine, (decision.operation for decision in state.decisions)),
    )


def _target(machine: Machine) -> Target:
    return Target(name=machine.name, kind=machine.kind, features=machine.features, row_padding=machine.row_padding)


def _model(state: Compilation) -> Model:
    source, traced = state.source, state.traced
    tokenizer = source.tokenizer
    if max(source.end_tokens, default=0) >= vocabulary(traced):
        raise ModelError(
            "a token that ends a generation is not in the vocabulary",
            where="eos_token_id of config.json or generation_config.json",
            expected=f"below {vocabulary(traced)}",
            got=str(max(source.end_tokens)),
            fix="correct the configuration",
        )
    dtype: Any = state.dtype
    return Model(
        name=source.name,
        model_type=traced.config["model_type"],
        architecture=traced.architecture,
        vocabulary=vocabulary(traced),
        hidden_size=int(traced.config["hidden_size"]),
        layers=len(traced.kinds),
        max_context=state.max_context,
        dtype=dtype,
        parameters=sum(int(np.prod(shape)) for shape in traced.parameters.values()),
        end_tokens=source.end_tokens,
        begin_token=tokenizer.begin_token if tokenizer else None,
        add_begin_token=bool(tokenizer and tokenizer.add_begin_token),
    )


def _references(state: Compilation, entries: dict[str, Any]) -> tuple[ProgramReference, ...]:
    """Every rank of a stage runs the same programs; stages that are alike but for their layers share an entry."""
    found: list[ProgramReference] = []
    inner = ranks_of(state.mesh) // len(state.steps)
    for program in state.programs:
        shared, shift = next(shared_programs(program, state.steps), (program, 0))
        entry = f"programs/{shared.name}.msgpack"
        if shared is program:
            entries[entry] = msgspec.msgpack.encode(program)
        others = tuple(range(program.rank + 1, program.rank + inner))
        found.append(
            ProgramReference(
                name=program.name,
                role="sample" if program is state.sample else "step",
                entry=entry,
                rank=program.rank,
                max_rows=program.buckets[-1].rows,
                others=others,
                shift=shift,
            )
        )
    return tuple(found)


def _tokenizer(source: ModelSource, entries: dict[str, Any]) -> TokenizerReference | None:
    files = source.tokenizer
    if files is None:
        return None
    entries["tokenizer/tokenizer.json"] = files.tokenizer_json
    template = ""
    if files.chat_template:
        template = "tokenizer/chat_template.jinja"
        entries[template] = files.chat_template.encode()
    return TokenizerReference(
        entry="tokenizer/tokenizer.json", chat_template_entry=template, special_tokens=dict(sorted(files.special_tokens.items()))
    )


def _goldens(state: Compilation, bound: Sequence[SourceTensor], entries: dict[str, Any]) -> tuple[Golden, ...]:
    constants, dtype = state.traced.constants, state.dtype
    program = Replayed(state.stages, state.weights, bound, constants, vocabulary(state.traced), dtype, state.mesh)
    case = make_golden(program, state.max_context)
    if case is None:
        return ()
    entry = f"golden/{case.name}.msgpack"
    entries[entry] = encode_golden(case)
    return (Golden(name=case.name, entry=entry, weights="counter"),)


def _performance(state: Compilation, costs: Sequence[StageCosts]) -> Performance:
    """Of a whole step, through all stages; predictions know that several steps are in flight."""
    whole = whole_costs(costs)
    performance = Performance(
        rates=rates_of(state.machine, state.dtype, native=state.steps[0].is_native or state.device is not None),
        step_costs=whole.rows,
        attention_flops_per_token_pair=whole.attention_flops_per_token_pair,
        kv_bytes_per_token=whole.kv_bytes_per_token,
        predictions={},
    )
    stages = [
        msgspec.structs.replace(
            performance,
            step_costs=item.rows,
            attention_flops_per_token_pair=item.attention_flops_per_token_pair,
            kv_bytes_per_token=item.kv_bytes_per_token,
        )
        for item in costs
    ]
    return msgspec.structs.replace(
        performance, predictions=predict_stages(stages, state.limits, state.limits.traffic, groups_of(state.mesh))
    )


def _costs(state: Compilation, part: StageParts) -> StageCosts:
    sizes = {bucket.rows: bucket.logit_rows for bucket in state.bucket_sizes}
    setting = None if state.device is None else state.device.setting
    return StageCosts(
        rows=cost_rows(part.module, state.machine, sizes, setting),
        attention_flops_per_token_pair=attention_flops(part.module),
        kv_bytes_per_token=float(bytes_per_block(part.groups)) / BLOCK_TOKENS,
    )


def _layout(state: Compilation) -> tuple[PlacementDecision, ...]:
    """What the partitioner chose, for people."""
    return tuple(
        PlacementDecision(
            operation=choice.operation,
            label=choice.label,
            axis=choice.axis,
            cut=choice.strategy.cut,
            operands=choice.strategy.operands,
            results=choice.strategy.results,
            seconds=choice.seconds,
            runner_up="" if choice.runner_up is None else choice.runner_up.summary,
            runner_up_seconds=choice.runner_up_seconds,
        )
        for choice in state.layout
    )
