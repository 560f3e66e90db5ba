"""Accelerators as data: what a compile target with memory and processors of its own is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from ..plans.schema import Rate
from .machine import Kernel, Machine, State
from .rates import MIB, nominal

SIZES: dict[str, str] = {
    "memory": "B",
    "cache.l2": "B",
    "units": "1",
    "shared.unit": "B",
    "shared.block": "B",
    "registers.unit": "1",
    "registers.thread": "1",
    "warp": "1",
    "overhead.context": "B",
}
"""Sizes that every accelerator has, with their units. `units` are multiprocessors or compute units; `shared` is the memory that
the threads of a block share (NVIDIA: shared memory, AMD: LDS), of a unit and the most a block may have of it; `registers` are of
32 bits, of a unit and the most a thread may have; `overhead.context` is the device memory that the driver takes."""

MORE_SIZES: dict[str, str] = {"link.devices": "1", "exchange.words": "B", "exchange.rows": "B"}
"""Sizes that accelerators may have: devices that reach each other's memory; the largest messages (a rank's, whole) that ranks sum
through each other's memory, in words that bear their number, and in rows with a flag behind them (triton/exchange.py). Without
them, the vendor's library does all sums."""

_HOST_LAUNCH = nominal(4.7e-6, "s", "as measured on h200; not measured here")
_GRAPH_NODE = nominal(1.5e-6, "s", "set, not measured")
_CONTEXT = nominal(640 * MIB, "B", "as on h200; not measured here")


@dataclass(frozen=True)
class Accelerator(Machine):
    """A target with a device of its own.

    `rates` has in addition "link.peer" and "link.host" (bytes per second, each direction, to all other devices of the node
    together and to the host) and "dispatch.graph" (a node of a captured graph). `sizes` holds the figures of `SIZES`.
    `nominal` keeps the vendor's figure of each rate that was measured. `instructions` are those that kernels may count on.
    Steps are padded to buckets, because captured graphs have one size.
    """

    sizes: Mapping[str, Rate] = field(default_factory=dict)
    nominal: Mapping[str, Rate] = field(default_factory=dict)
    instructions: tuple[str, ...] = ()

    @property
    def memory_bytes(self) -> int:
        return int(self.sizes["memory"].value)

    @property
    def units(self) -> int:
        """Multiprocessors (NVIDIA) or compute units (AMD)."""
        return int(self.sizes["units"].value)

    @property
    def peers(self) -> int:
        """Devices that reach each other's memory, this one among them."""
        return int(self.sizes["link.devices"].value) if "link.devices" in self.sizes else 1

    @property
    def most_exchanged(self) -> int:
        """Bytes of the largest message that ranks sum through each other's memory."""
        return max((int(self.sizes[name].value) for name in ("exchange.words", "exchange.rows") if name in self.sizes), default=0)

    def without_exchanges(self) -> Accelerator:
        """The same, but no sums through each other's memory."""
        return replace(self, sizes={name: size for name, size in self.sizes.items() if not name.startswith("exchange.")})

    @property
    def shared_bytes_per_block(self) -> int:
        """The most shared memory that one block may have."""
        return int(self.sizes["shared.block"].value)

    @property
    def warp_size(self) -> int:
        return int(self.sizes["warp"].value)

    def dispatch_rate(self, native: bool) -> Rate:
        """The plan's own kernels are nodes of a captured graph; a library is called from the host."""
        return self.rates["dispatch.graph" if native else "dispatch"]


def accelerator(
    name: str,
    description: str,
    *,
    kind: Literal["cuda", "hip"],
    arch: str,
    rates: dict[str, Rate],
    sizes: dict[str, Rate],
    measured: dict[str, Rate] | None = None,
    instructions: str = "",
    kernels: tuple[Kernel, ...] = (),
    state: State = "compiled and checked",
) -> Accelerator:
    """A target from its data sheet and what was measured: `measured` figures take the place of `rates`, which are kept."""
    found = measured or {}
    defaults = {"dispatch": _HOST_LAUNCH, "dispatch.graph": _GRAPH_NODE}
    sizes = {"overhead.context": _CONTEXT, **sizes}
    overhead = int(sizes["overhead.context"].value)
    return Accelerator(
        name=name,
        kind=kind,
        description=description,
        features=(arch,),
        rates=defaults | rates | found,
        kernels=kernels,
        row_padding="bucket",
        overhead_bytes=overhead,
        native_overhead_bytes=overhead,
        vendor={"cuda": "NVIDIA", "hip": "AMD"}[kind],
        arch=arch,
        family=kind,
        state=state,
        sizes=sizes,
        nominal={key: rates[key] for key in found if key in rates},
        instructions=tuple(instructions.split()),
    )
