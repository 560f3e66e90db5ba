"""What operand names of a program may stand for, outside the program itself."""

from __future__ import annotations

from collections.abc import Iterator

from .kv_caches import cache_names, state_arrays
from .schema import Manifest, Weight
from .template import instantiate


def weight_instances(weight: Weight) -> Iterator[tuple[str, int]]:
    """(name, layer) of each instance of a weight; layer is 0 for one that is not templated."""
    if not weight.layers:
        yield weight.name, 0
    for layer in weight.layers:
        yield instantiate(weight.name, layer), layer


def read_only_names(manifest: Manifest) -> Iterator[str]:
    """Step inputs, constants, exchanges and weight instances: what no instruction may write."""
    yield from (item.name for item in manifest.step_inputs)
    yield from (item.name for item in (manifest.device.exchanges if manifest.device else ()))
    yield from (item.name for item in manifest.constants)
    for weight in manifest.weights:
        yield from (name for name, _ in weight_instances(weight))


def writable_names(manifest: Manifest) -> Iterator[str]:
    """Slot buffers, KV caches and recurrent states."""
    yield from (item.name for item in manifest.slot_buffers)
    for group in manifest.kv.groups:
        yield from cache_names(group)
    for states in manifest.kv.states:
        yield from (name for name, _, _ in state_arrays(states))
