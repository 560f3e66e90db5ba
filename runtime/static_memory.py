"""All memory of a plan but its weights, allocated once: arena, step inputs, slots, constants, KV caches, states."""

from __future__ import annotations

from dataclasses import dataclass

from ..plans.errors import MemoryPlanError
from ..plans.kv_caches import cache_names, state_arrays
from ..plans.schema import KvGroup, Manifest
from .host_arrays import HostArray, committed, committed_together, from_bytes
from .weights import PlanSource


@dataclass(frozen=True)
class StaticMemory:
    """`state` holds what programs may write besides the arena: slot buffers, KV caches and recurrent states."""

    arena: HostArray
    inputs: dict[str, HostArray]
    constants: dict[str, HostArray]
    state: dict[str, HostArray]


def allocate(plan: PlanSource, needed: set[str] | None = None) -> StaticMemory:
    """Allocate as `manifest.memory` plans; of KV caches and states only those in `needed` when it is given.

    Raises MemoryPlanError when the machine has not that much.
    """
    manifest = plan.manifest
    try:
        return StaticMemory(
            arena=committed((manifest.memory.arena,), "u8"),
            inputs={item.name: committed(item.shape, item.dtype) for item in manifest.step_inputs},
            constants={item.name: from_bytes(plan.entry(item.entry), item.shape, item.dtype) for item in manifest.constants},
            state={**_slots(manifest), **_caches(manifest, needed), **_states(manifest, needed)},
        )
    except (OSError, MemoryError) as error:
        memory = manifest.memory
        wanted = memory.arena + memory.inputs + memory.slots + memory.constants + memory.kv + memory.states
        raise MemoryPlanError(
            "The plan's memory cannot be allocated.",
            where="memory",
            expected=f"{wanted} bytes besides the weights",
            got=str(error).splitlines()[0] if str(error) else "too little memory",
            fix="free memory, or compile the plan for less (tokenspeed-compile --memory)",
        ) from None


def _slots(manifest: Manifest) -> dict[str, HostArray]:
    return {
        buffer.name: committed(tuple(extent for extent in buffer.shape if isinstance(extent, int)), buffer.dtype)
        for buffer in manifest.slot_buffers
    }


def _caches(manifest: Manifest, needed: set[str] | None) -> dict[str, HostArray]:
    """Every cache as [blocks, block_tokens, heads, head_dim], whatever the order of its blocks in memory."""
    kv = manifest.kv
    group_of = {name: group for group in kv.groups for name in cache_names(group) if needed is None or name in needed}
    wanted = {
        name: (_in_memory(group, kv.pool_blocks[group.pool], kv.block_tokens), group.dtype) for name, group in group_of.items()
    }
    made = committed_together(wanted)
    return {name: _tokens_first(array) if group_of[name].block_order == "head_major" else array for name, array in made.items()}


def _states(manifest: Manifest, needed: set[str] | None) -> dict[str, HostArray]:
    arrays = (array for group in manifest.kv.states for array in state_arrays(group))
    return committed_together({name: (shape, dtype) for name, shape, dtype in arrays if needed is None or name in needed})


def _in_memory(group: KvGroup, blocks: int, block_tokens: int) -> tuple[int, ...]:
    inside = (group.heads, block_tokens) if group.block_order == "head_major" else (block_tokens, group.heads)
    return blocks, *inside, group.head_dim


def _tokens_first(array: HostArray) -> HostArray:
    return HostArray(array.data.transpose(0, 2, 1, 3), array.dtype)
