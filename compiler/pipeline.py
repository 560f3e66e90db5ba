"""The whole compiler on one screen: phases in order, nothing hidden.

schedule -> import -> raise -> partition -> fuse -> quantize -> select -> split -> codegen -> allocate -> emit
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from ..ir import module as modules
from ..ir.mlir import ir
from ..passes.allocate import allocate
from ..passes.balance_stages import balance, step_costs
from ..passes.choose_weight_types import choose_weight_types, stored_share
from ..passes.device_setting import decode_rows, device_bucket_sizes, device_setting
from ..passes.fuse_add_norm import fuse_add_norm
from ..passes.fuse_rope_kv_write import fuse_rope_kv_write
from ..passes.halve_rows import halve_rows
from ..passes.lower import lower
from ..passes.lower_device import DeviceCalls
from ..passes.merge_projections import merge_projections
from ..passes.partition import partition
from ..passes.placing.costs import Prices
from ..passes.placing.pins import Pins
from ..passes.placing.search import Choice
from ..passes.raise_aten import raise_aten
from ..passes.sample_program import build_device_sample_program, build_sample_program
from ..passes.schedule import BucketSize, bucket_sizes, schedule, workloads
from ..passes.select import Workload, select, select_crossings
from ..passes.share_kv_caches import share_kv_caches
from ..passes.split_stages import joined, split_stages
from ..passes.store_weights import plan_weights, split_packed
from ..passes.verify_spmd import verify_spmd
from ..passes.verify_stages import verify_stages
from ..passes.when_to_halve import least_rows
from ..passes.window_pools import window_pools
from ..plans.errors import UsageError
from ..plans.integrity import IDENTITY_TOKENS
from ..plans.mesh import groups_of, stages_of
from ..plans.program import Buffer, Program
from ..plans.sampling import slot_buffers
from ..plans.schema import Decision, Manifest, MeshAxis, MeshCandidate, Schedule, Weight
from ..plans.template import instantiate
from ..targets.accelerator import Accelerator
from ..targets.cpu.build import why_not_native
from ..targets.machine import Machine
from ..targets.registry import find_target
from ..targets.triton.build import require_triton
from . import emit
from .choose_mesh import Setting, choose_mesh
from .frontends.import_aten import import_model
from .frontends.model_source import ModelSource
from .frontends.trace import TracedModel, trace
from .memory import BLOCK_TOKENS
from .mesh import ONE_RANK, mesh_of, ranks_of, without_stages
from .options import CompileOptions
from .proof import prove

HOST_LIMITS, DEVICE_LIMITS = (16, 512), (64, 2048)
"""Sequences and prompt tokens of a step, unless asked otherwise."""

_FEW_ROWS = 8
"""So few are never done in halves."""

FUSIONS = (merge_projections, fuse_add_norm, share_kv_caches, fuse_rope_kv_write)


@dataclass
class Compilation:
    """What the phases hand on. Fields are filled in the order of the phases and not changed afterwards, but for `module`."""

    source: ModelSource
    options: CompileOptions
    machine: Machine
    dtype: str
    max_context: int
    limits: Schedule
    traced: TracedModel
    module: ir.Module
    no_native_kernels: str | None
    """Why the plan cannot carry native kernels; None when it can."""
    device: DeviceCalls | None = None
    """Makes the calls of a plan for an accelerator."""
    mesh: tuple[MeshAxis, ...] = ONE_RANK
    candidates: tuple[MeshCandidate, ...] = ()
    """The meshes that were weighed, where the user named none."""
    layout: tuple[Choice, ...] = ()
    """What the partitioner chose, where there are several ranks."""
    decisions: tuple[Decision, ...] = ()
    weights: tuple[Weight, ...] = ()
    stages: tuple[ir.Module, ...] = ()
    """The module of each stage of the pipeline; where there is none, the whole one alone."""
    steps: tuple[Program, ...] = ()
    """The step program of each stage."""
    halves: ir.Module | None = None
    """What `halved` was made of: templates of its calls look at operations until their code is made."""
    halved: Program | None = None
    """The step program of large buckets, whose layers run in halves of the rows."""
    sample: Program | None = None
    slots: tuple[Buffer, ...] = ()
    ir_texts: dict[str, str] = field(default_factory=dict)
    manifest: Manifest | None = None
    entries: dict[str, Any] = field(default_factory=dict)

    @property
    def step(self) -> Program | None:
        """The step program, of the first stage."""
        return self.steps[0] if self.steps else None

    @property
    def programs(self) -> tuple[Program, ...]:
        """All of the plan's programs."""
        more = (self.halved, self.sample)
        return (*self.steps, *(program for program in more if program is not None))

    @property
    def windows(self) -> tuple[int, ...]:
        """The windows that have pools of KV blocks of their own; none with a tier on the host, which pool 0 alone has."""
        if not self.options.window_pools or self.options.host_kv:
            return ()
        return window_pools(self.module, self.max_context, IDENTITY_TOKENS)

    @property
    def bucket_sizes(self) -> tuple[BucketSize, ...]:
        """Of step programs, all together."""
        return bucket_sizes(self.limits) if self.device is None else device_bucket_sizes(self.limits)

    @property
    def workloads(self) -> tuple[Workload, ...]:
        """The kinds of step that kernels, layouts and stages are chosen for."""
        return workloads(self.limits, stages_of(self.mesh) * groups_of(self.mesh))


def raise_operations(state: Compilation) -> None:
    state.module = raise_aten(state.module, state.traced.config["model_type"])


def place(state: Compilation) -> None:
    memory = state.machine.memory_bytes if state.options.memory is None else state.options.memory
    # weights are still in the model's own type here
    kept = "e4m3_128" if state.source.float8 is not None and "e4m3_128" in _readers(state).get("ts.linear", ()) else None
    share = stored_share(state.options.quantize, kept)
    pins = Pins(state.options.placement)

    def prices(mesh: Sequence[MeshAxis]) -> Prices:
        # each stage has about as much of the layers
        room = None if memory is None else int(memory / share) * stages_of(mesh)
        loads = workloads(state.limits, stages_of(mesh) * groups_of(mesh))
        return Prices(state.machine, loads, state.limits.traffic["prompt_tokens"], room)

    if state.options.parallel == "auto" and ranks_of(state.mesh) > 1:
        setting = Setting(
            parse=lambda: modules.parse(state.ir_texts["raise"]),
            machine=state.machine,
            dtype=state.dtype,
            limits=state.limits,
            max_context=state.max_context,
            prices=prices,
            pins=pins,
            memory=memory,
            stored=share,
            kv_dtype=None if state.device is None else state.device.setting.kv_dtype,
            native=state.no_native_kernels is None,
        )
        state.mesh, state.candidates = choose_mesh(setting, ranks_of(state.mesh))
    # layers are placed as if there were no stages: a layer costs the same in whichever it is
    state.layout = partition(state.module, without_stages(state.mesh), prices(state.mesh), pins)


def fuse(state: Compilation) -> None:
    state.module = fused(state.module)
    whole = state.module if ranks_of(state.mesh) == 1 else on_one_rank(modules.parse(state.ir_texts["raise"]))
    prove(state.traced, whole, lambda small: on_one_rank(raise_aten(small, "miniature")))


def quantize(state: Compilation) -> None:

    def encodings(parameter: str, layers: Sequence[int]) -> set[str]:
        shape = state.traced.parameters[instantiate(parameter, layers[0]) if layers else parameter]
        return state.source.stored_types(parameter, shape, layers or None)

    choose_weight_types(state.module, state.options.quantize, state.no_native_kernels, encodings, _readers(state))


def _readers(state: Compilation) -> dict[str, set[str]]:
    """The block types that kernels of the target read, by operation."""
    found: dict[str, set[str]] = {}
    for kernel in state.machine.kernels:
        if kernel.blocks:
            found.setdefault(kernel.operation, set()).update(kernel.blocks)
    return found


def choose_kernels(state: Compilation) -> None:
    state.decisions = select(state.module, state.machine, state.workloads, state.no_native_kernels)
    split_packed(state.module, state.machine)
    state.weights = plan_weights(state.module, state.machine, state.traced.parameters, state.source, state.mesh)


def cut_into_stages(state: Compilation) -> None:
    count = stages_of(state.mesh)
    if count > 1:
        traffic = state.limits.traffic
        context = traffic["prompt_tokens"] + traffic["output_tokens"] / 2
        kept = None if state.device is None else state.device.setting.kv_dtype
        costs = step_costs(state.module, state.machine, state.workloads, context, kept)
        memory = state.machine.memory_bytes if state.options.memory is None else state.options.memory
        cuts = balance(costs, count, memory, state.max_context, joined(state.module))
        state.stages = split_stages(state.module, cuts)
        for stage in state.stages:
            verify_spmd(stage)
        verify_stages(state.stages, [(axis.name, axis.size) for axis in state.mesh])
        state.decisions += select_crossings(state.stages, state.machine, state.workloads)
    else:
        state.stages = (state.module,)


def make_instructions(state: Compilation) -> None:
    native = state.no_native_kernels is None
    inner = ranks_of(state.mesh) // len(state.stages)
    names = [f"step.stage{number}" for number in range(len(state.stages))] if len(state.stages) > 1 else ["step"]
    state.steps = tuple(
        lower(stage, state.machine, native, state.device, name, number * inner, state.windows)
        for number, (stage, name) in enumerate(zip(state.stages, names, strict=True))
    )
    least = _least_rows_halved(state)
    if least is not None:
        state.halves = halve_rows(state.module)
        state.halved = lower(state.halves, state.machine, native, state.device, "step.halved", windows=state.windows)
    vocabulary = emit.vocabulary(state.traced)
    logits_dtype: Any = state.dtype
    sequences = state.limits.max_sequences
    if state.device is not None:
        state.sample = build_device_sample_program(state.device, vocabulary, logits_dtype, decode_rows(state.limits))
        state.slots = slot_buffers(vocabulary, sequences)
    else:
        state.sample, state.slots = build_sample_program(vocabulary, sequences, sequences, logits_dtype, native)
    state.sample = msgspec.structs.replace(state.sample, rank=state.steps[-1].rank)


def _least_rows_halved(state: Compilation) -> int | None:
    """The smallest bucket whose layers run in halves; None for none. Stages of a pipeline have other steps to run meanwhile."""
    if state.options.overlap == "never" or len(state.stages) > 1 or "ts.all_reduce" not in str(state.module):
        return None
    # a device's kernels may count on one row of each sequence in buckets whose rows all want logits
    chunks = [size for size in state.bucket_sizes if size.rows > (size.logit_rows if state.device is not None else _FEW_ROWS)]
    if state.options.overlap == "always":
        return chunks[0].rows if chunks else None
    return least_rows(state.module, state.machine, chunks, native=state.device is not None)


def lay_out_memory(state: Compilation) -> None:
    least = _least_rows_halved(state)
    small = [size for size in state.bucket_sizes if least is None or size.rows < least]
    state.steps = tuple(allocate(step, small) for step in state.steps)
    if state.halved is not None:
        state.halved = allocate(state.halved, [size for size in state.bucket_sizes if size not in small])


def write_manifest(state: Compilation) -> None:
    state.manifest, state.entries = emit.emit(state)


PHASES: tuple[tuple[str, Callable[[Compilation], None]], ...] = (
    ("import", lambda _state: None),
    ("raise", raise_operations),
    ("partition", place),
    ("fuse", fuse),
    ("quantize", quantize),
    ("select", choose_kernels),
    ("split", cut_into_stages),
    ("codegen", make_instructions),
    ("allocate", lay_out_memory),
    ("emit", write_manifest),
)
"""Schedule and import happen in `begin`, before there is a state to hand on; `import` stands here to be stopped at."""

Observer = Callable[[str, Compilation], None]


def begin(source: ModelSource, options: CompileOptions) -> Compilation:
    """Resolve the options against model and target, trace, import. Must run inside an IR context."""
    machine, mesh = find_target(options.target), mesh_of(options.target, options.parallel)
    if isinstance(machine, Accelerator):
        require_triton()
        machine = machine if options.collectives == "auto" else machine.without_exchanges()
    elif options.kv_dtype != "auto":
        raise UsageError(
            "kernels of CPUs keep keys and values in the model's type", where="--kv-dtype", expected="auto", got=options.kv_dtype
        )
    dtype = emit.choose_dtype(source, options, machine)
    max_context = emit.choose_context(source, options)
    options = options.with_limits(*(DEVICE_LIMITS if isinstance(machine, Accelerator) else HOST_LIMITS))
    assert options.max_sequences is not None and options.prefill_chunk is not None
    limits = schedule(
        options.traffic,
        max_context,
        options.max_sequences,
        options.prefill_chunk,
        whole_tiles=isinstance(machine, Accelerator),
    )
    traced = trace(dict(source.config), dtype, context=max_context)
    source = replace(source, names=traced.names)
    module = import_model(traced)
    if isinstance(machine, Accelerator):
        kept = None if options.kv_dtype == "auto" else options.kv_dtype
        device = DeviceCalls(device_setting(machine, limits, BLOCK_TOKENS, max_context, kept))
        return Compilation(source, options, machine, dtype, max_context, limits, traced, module, None, device, mesh)
    no_native = why_not_native(machine, dtype) if options.kernels == "auto" else "--kernels library"
    return Compilation(source, options, machine, dtype, max_context, limits, traced, module, no_native, None, mesh)


def compile_model(source: ModelSource, options: CompileOptions, observe: Observer, stop_after: str = "emit") -> Compilation:
    """Run the phases in order, telling `observe` after each; must run inside an IR context.

    Raises TokenspeedError: the model, the options or the memory do not allow a plan.
    """
    state = begin(source, options)
    for name, phase in PHASES:
        phase(state)
        modules.verify(state.module)
        if name != "emit" and (name != "split" or len(state.stages) > 1):
            state.ir_texts[name] = text_of(state)
        observe(name, state)
        if name == stop_after:
            break
    return state


def text_of(state: Compilation) -> str:
    """The IR as it is: one module, or that of each stage."""
    return "\n".join(map(str, state.stages or (state.module,)))


def on_one_rank(module: ir.Module) -> ir.Module:
    """A raised module as one rank runs it: what the proof is about."""
    partition(module, ONE_RANK)
    return fused(module)


def fused(module: ir.Module) -> ir.Module:
    for fusion in FUSIONS:
        fusion(module)
        verify_spmd(module)
    return module
