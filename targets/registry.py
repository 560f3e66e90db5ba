"""All targets by name. A new target is one row in a vendor's folder and one line here."""

from __future__ import annotations

from collections.abc import Iterable

from ..plans.errors import UsageError
from .cpu.machines import CPU_MACHINES, resolve_host_cpu
from .machine import Machine

TARGETS: dict[str, Machine] = {machine.name: machine for machine in (*CPU_MACHINES,)}


def find_target(name: str, host_features: Iterable[str] | None = None) -> Machine:
    """The target called `name`; `cpu` becomes the named instruction set of this host first.

    Raises UsageError listing what there is.
    """
    if name == "cpu":
        return resolve_host_cpu(host_features)
    if name not in TARGETS:
        raise UsageError(
            f"there is no target {name!r}",
            where="--target",
            expected=", ".join(["cpu", *TARGETS]),
            got=name,
            fix="tokenspeed-compile --list-targets",
        )
    return TARGETS[name]
