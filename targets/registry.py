"""All targets by name. A new target is one row in a vendor's folder and one line here, or a plugin's."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import replace

from ..plans.errors import UsageError
from .accelerator import Accelerator
from .amd import AMD
from .cpu.machines import CPU_MACHINES, resolve_host_cpu
from .machine import Machine
from .nvidia import NVIDIA
from .plugins import Plugins, find_plugins
from .triton.library import TRITON_KERNELS

TARGETS: dict[str, Machine] = {machine.name: machine for machine in (*CPU_MACHINES,)}
"""Machines that plans run on the processors of."""

ACCELERATORS: dict[str, Accelerator] = {machine.name: replace(machine, kernels=TRITON_KERNELS) for machine in (*NVIDIA, *AMD)}
"""Machines with a device of their own, with the kernels that Triton compiles for them."""


@functools.cache
def plugins() -> Plugins:
    """The plugins of this environment, looked for once."""
    return find_plugins(tuple({**TARGETS, **ACCELERATORS}.values()))


def all_targets() -> dict[str, Machine]:
    """Every target that has a name here, whether or not plans can be compiled for it: built in, then of plugins."""
    return {**TARGETS, **ACCELERATORS, **plugins().targets}


def find_target(name: str, host_features: Iterable[str] | None = None) -> Machine:
    """The target called `name`, with the kernels that plugins have for it; `cpu` becomes the named instruction set of this host.

    Raises UsageError listing what there is, and for targets that plans cannot be compiled for yet.
    """
    name = name.partition(":")[0]  # how many of it is the mesh's business
    if name == "cpu":
        return plugins().extended(resolve_host_cpu(host_features))
    known = all_targets()
    if name not in known:
        refused = [f"{error.what} ({error.got})" for error in plugins().refused]
        raise UsageError(
            f"there is no target {name!r}",
            where="--target",
            expected=", ".join(["cpu", *known]),
            got="; ".join([name, *refused]),
            fix="tokenspeed-compile --list-targets",
        )
    machine = plugins().extended(known[name])
    if not machine.kernels:
        ready = [target.name for target in known.values() if plugins().extended(target).kernels]
        raise UsageError(
            f"plans for {name} cannot be compiled yet: this version has the device's data, but no kernels for it",
            where="--target",
            expected=", ".join(["cpu", *ready]),
            got=f"{name} ({machine.description}, {machine.arch}): {machine.state}",
            fix="tokenspeed-compile --list-targets shows how far each target has come",
        )
    return machine
