"""Layers that see a window of tokens keep keys and values in a pool of their own, whose blocks are free behind the window."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..ir import module as modules
from ..ir.mlir import ir
from ..plans.template import instantiate

ATTENTION = {"ts.attention", "ts.cached_attention"}


def window_pools(module: ir.Module, max_context: int, unit_tokens: int) -> tuple[int, ...]:
    """The windows that get a pool, pool 1 first: those that spare a sequence blocks in a context of `max_context` tokens.

    Blocks are counted in units of `unit_tokens`, of which prefixes are shared whole.
    """
    whole = -(-max_context // unit_tokens)
    return tuple(window for window in sorted({*_windows(module)} - {0}) if tail_units(window, unit_tokens) < whole)


def tail_units(window: int, unit_tokens: int) -> int:
    """The most units that a decoding sequence holds: what is behind the window stays until the next unit is full
    (runtime/scheduling/windows.py), and the next row may need another."""
    return 2 - (-(window - 1) // unit_tokens)


def pools_of_layers(module: ir.Module, windows: Sequence[int]) -> dict[int, int]:
    """The pool of every layer whose window has one."""
    pools = {window: pool for pool, window in enumerate(windows, 1)}
    return {
        layer: pools[modules.int_attribute(operation, "window")]
        for operation in _attention(module)
        if modules.int_attribute(operation, "window") in pools
        for layer in cache_layers(operation)
    }


def cache_layers(operation: ir.Operation) -> list[int]:
    """The layers whose caches an operation reads or writes, one each time it runs."""
    template, parent = modules.text_attribute(operation, "layer"), operation.parent
    if parent is None or parent.name != "ts.repeat":
        return [int(template)]
    first, count, stride = (modules.int_attribute(parent, name) for name in ("first", "count", "stride"))
    return [int(instantiate(template, index)) for index in range(first, first + count * stride, stride)]


def _windows(module: ir.Module) -> Iterator[int]:
    yield from (modules.int_attribute(operation, "window") for operation in _attention(module))


def _attention(module: ir.Module) -> Iterator[ir.Operation]:
    return (operation for operation in modules.walk(modules.step_block(module)) if operation.name in ATTENTION)
