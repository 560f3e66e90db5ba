"""The KV caches and recurrent states of a group: their names, sizes and order in memory (docs/plan-format.md, "KV groups")."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod

from .device_kernels import DEVICE
from .program import DTYPE_BYTES, NATIVE, Program, Repeat
from .schema import KvGroup, StateGroup
from .template import instantiate

_PREFIX, _STATE = "kv.", "kv.state."


def cache_names(group: KvGroup) -> Iterator[str]:
    """The caches of all layers: keys and values, or one of latents."""
    for layer in group.layers:
        if group.kind == "latent":
            yield f"kv.latent.{layer}"
        else:
            yield f"kv.k.{layer}"
            yield f"kv.v.{layer}"


def is_cache(name: str) -> bool:
    """Whether an operand's name is that of a KV cache."""
    return name.startswith(_PREFIX) and not name.startswith(_STATE)


def state_name(layer: int | str, number: int) -> str:
    """State `number` of a layer, which may be a template."""
    return f"kv.state.{layer}.{number}"


def state_arrays(group: StateGroup) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Name, shape and type of every array of the group."""
    for layer in group.layers:
        for number, (shape, dtype) in enumerate(zip(group.shapes, group.dtypes, strict=True)):
            yield state_name(layer, number), (group.slots, *shape), dtype


def state_bytes(group: StateGroup, alignment: int = 1) -> int:
    """Bytes of all arrays, each rounded up to `alignment`."""
    sizes = (prod(shape) * DTYPE_BYTES[dtype] for _, shape, dtype in state_arrays(group))
    return sum(-(-size // alignment) * alignment for size in sizes)


def block_bytes(group: KvGroup, block_tokens: int) -> int:
    """Bytes of one block over all layers of the group."""
    caches = sum(1 for _ in cache_names(group))
    return caches * block_tokens * group.heads * group.head_dim * DTYPE_BYTES[group.dtype]


def pool_block_bytes(groups: Iterable[KvGroup], block_tokens: int, windows: int) -> tuple[int, ...]:
    """Bytes of one block of each pool, over all layers of its groups: pool 0, then so many of windows."""
    sizes = [0] * (1 + windows)
    for group in groups:
        sizes[group.pool] += block_bytes(group, block_tokens)
    return tuple(sizes)


def caches_of_libraries(program: Program) -> Iterator[tuple[str, str]]:
    """(cache, function) for each cache that a function reads or writes which is no kernel of the plan's own. Such
    functions take token-major blocks only."""
    for item in program.body:
        calls, layers = (item.body, _layers(item)) if isinstance(item, Repeat) else ((item,), range(1))
        for call in calls:
            if call.function.startswith((NATIVE, DEVICE)):
                continue
            for name in (*call.inputs, *call.outputs):
                if name.startswith(_PREFIX):
                    yield from ((instantiate(name, layer), call.function) for layer in layers)


def _layers(repeat: Repeat) -> range:
    return range(repeat.first, repeat.first + repeat.count * repeat.stride, repeat.stride)
