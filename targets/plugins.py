"""Targets and kernels of other distributions, found by their entry points (docs/targets.md, "Plugins").

A distribution is taken whole or not at all: what is wrong with one is reported under its name, and the others are used. Names
that are taken already are refused, so that what a name means does not depend on what else is installed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from ..ir.mlir import ir
from ..plans.errors import TokenspeedError
from ..plans.program import NATIVE
from .check import check_target, kernel_problems
from .cpu.build import kernel_names, kernels_in
from .machine import Kernel, KernelSet, Machine

TARGETS_GROUP, KERNELS_GROUP = "tokenspeed.targets", "tokenspeed.kernels"

_NOT_CODE = {".pyc", ".pyo"}


class PluginError(TokenspeedError):
    """A plugin that cannot be used; the message names its distribution."""

    exit_code = 2


@dataclass(frozen=True)
class Plugin:
    """What a distribution adds. `digest` is the SHA-256 (hex) of the names and contents of its package's files."""

    name: str
    version: str
    digest: str
    targets: tuple[Machine, ...] = ()
    kernel_sets: tuple[KernelSet, ...] = ()

    @property
    def identity(self) -> str:
        """As a plan's provenance has it."""
        return f"{self.version} sha256:{self.digest}"

    def kernels(self, family: str) -> tuple[Kernel, ...]:
        """Its kernels for targets of a family."""
        return tuple(kernel for item in self.kernel_sets if item.family == family for kernel in item.kernels)


@dataclass(frozen=True)
class Plugins:
    """Those in use, by name, and why each of the others is not."""

    used: tuple[Plugin, ...] = ()
    refused: tuple[PluginError, ...] = ()

    @property
    def targets(self) -> dict[str, Machine]:
        return {machine.name: machine for plugin in self.used for machine in plugin.targets}

    def extended(self, machine: Machine) -> Machine:
        """The machine with the kernels that plugins have for its family, after its own, which keep their names."""
        own = {(kernel.operation, kernel.name) for kernel in machine.kernels}
        offered = (kernel for plugin in self.used for kernel in plugin.kernels(machine.family))
        more = tuple(kernel for kernel in offered if (kernel.operation, kernel.name) not in own)
        return replace(machine, kernels=(*machine.kernels, *more)) if more else machine

    def behind(self, machine: Machine, operations: Iterable[str]) -> dict[str, str]:
        """Name -> identity of each plugin that had a say in a plan: its target, or kernels of it for one of the operations."""
        wanted = set(operations)
        return {
            plugin.name: plugin.identity
            for plugin in self.used
            if machine.name in {target.name for target in plugin.targets}
            or wanted & {kernel.operation for kernel in plugin.kernels(machine.family)}
        }

    def sources(self, functions: Iterable[str]) -> dict[Path, str]:
        """C++ files of the sets that define a native function among `functions`, each with its plugin's name."""
        wanted = {name.removeprefix(NATIVE) for name in functions if name.startswith(NATIVE)}
        sets = ((plugin.name, item) for plugin in self.used for item in plugin.kernel_sets)
        return {path: name for name, item in sets if wanted & set(kernels_in(item.sources)) for path in item.sources}


def find_plugins(machines: Sequence[Machine]) -> Plugins:
    """The plugins of this environment, in the order of their names; `machines` are the targets that are built in."""
    found: dict[str, list[EntryPoint]] = {}
    for group in (TARGETS_GROUP, KERNELS_GROUP):
        for point in entry_points(group=group):
            found.setdefault(_distribution(point), []).append(point)
    loaded: list[Plugin] = []
    refused: list[PluginError] = []
    for name in sorted(found):
        points = sorted(found[name], key=lambda point: (point.group, point.name))
        try:
            plugin = _load(name, points)
            _check(plugin, machines)
            loaded.append(plugin)
        except PluginError as error:
            refused.append(error)
        except (Exception, SystemExit) as error:  # a stranger's code: whatever it raises is its own failure
            refused.append(_refusal(name, "it cannot be loaded", f"{type(error).__name__}: {error}".rstrip(": ")))
    clashes = _clashes(loaded)
    refused += [_refusal(name, "a name of it is taken", text) for name, text in sorted(clashes.items())]
    return Plugins(tuple(plugin for plugin in loaded if plugin.name not in clashes), tuple(refused))


def _distribution(point: EntryPoint) -> str:
    name = point.dist.name if point.dist is not None else point.module.split(".")[0]
    return re.sub(r"[-_.]+", "-", name).lower()


def _load(name: str, points: Sequence[EntryPoint]) -> Plugin:
    targets: list[Machine] = []
    sets: list[KernelSet] = []
    for point in points:
        if point.group == TARGETS_GROUP:
            targets += _items(name, point, Machine)
        else:
            for item in _items(name, point, KernelSet):
                sets.append(replace(item, kernels=tuple(_guarded(name, kernel) for kernel in item.kernels)))
    version = points[0].dist.version if points[0].dist is not None else "unknown"
    return Plugin(name, version, _digest(points), tuple(targets), tuple(sets))


def _items(name: str, point: EntryPoint, kind: type[Any]) -> list[Any]:
    loaded = point.load()
    items = list(loaded) if isinstance(loaded, (tuple, list)) else [loaded]
    wrong = [type(item).__name__ for item in items if not isinstance(item, kind)]
    if wrong or not items:
        expected = f"a {kind.__name__} of tokenspeed.targets.machine, or a tuple of them"
        raise _refusal(name, f"{point.group}: {point.value} is something else", ", ".join(wrong) or "nothing in it", expected)
    return items


def _guarded(name: str, kernel: Kernel) -> Kernel:
    """The kernel, refusing, with the plugin's name, what its own rule fails on."""

    def refuses(operation: ir.Operation, machine: Machine) -> str | None:
        try:
            return kernel.refuses(operation, machine)
        except Exception as error:
            return f"plugin {name}: its rule failed, {type(error).__name__}: {' '.join(str(error).split())[:200]}"

    return replace(kernel, refuses=refuses)


def _digest(points: Sequence[EntryPoint]) -> str:
    """Over every file of the packages that the entry points live in, wherever they are installed."""
    digest = hashlib.sha256()
    for package in sorted({_package(point.module) for point in points}):
        spec = importlib.util.find_spec(package)
        assert spec is not None
        roots = [Path(root) for root in spec.submodule_search_locations or ()]
        files = [path for root in roots for path in root.rglob("*")] if roots else [Path(str(spec.origin))]
        named = {f"{package}/{_inside(path, roots)}": path for path in files if path.is_file() and path.suffix not in _NOT_CODE}
        for name, path in sorted(named.items()):
            content = path.read_bytes()
            digest.update(f"{name} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()


def _inside(path: Path, roots: Sequence[Path]) -> str:
    root = next((root for root in roots if path.is_relative_to(root)), path.parent)
    return path.relative_to(root).as_posix()


def _package(module: str) -> str:
    """The outermost regular package (or module) that a module lies in: namespace packages are shared with others."""
    parts = module.split(".")
    for count in range(1, len(parts)):
        name = ".".join(parts[:count])
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            return name
    return module


def _check(plugin: Plugin, machines: Sequence[Machine]) -> None:
    """Raises PluginError for wrong data, and for names that are built in."""
    for target in plugin.targets:
        try:
            check_target(target)
        except TokenspeedError as error:
            raise _refusal(plugin.name, error.what, error.got, error.expected) from error
    families = {machine.family for machine in (*machines, *plugin.targets)}
    for item in plugin.kernel_sets:
        problems = [*_set_problems(item), *kernel_problems(item.kernels)]
        if item.family not in families:
            problems.append(f"family {item.family!r} has no target, expected one of {', '.join(sorted(families))}")
        if problems:
            raise _refusal(plugin.name, "the data of its kernels is wrong", "; ".join(problems))
    _refuse_taken(plugin, machines)


def _set_problems(item: KernelSet) -> Iterator[str]:
    for path in item.sources:
        if not path.is_file():
            yield f"{path} is not a file"
    defined = set(kernels_in(path for path in item.sources if path.is_file()))
    for kernel in item.kernels:
        for function in kernel.function.split("+"):
            named = function.removeprefix(NATIVE)
            if function.startswith(NATIVE) and named not in defined and named not in kernel_names():
                yield f"kernel {kernel.name!r}: no source of it has KERNEL({named}, ...)"


def _refuse_taken(plugin: Plugin, machines: Sequence[Machine]) -> None:
    built_in = {f"target {name!r}" for name in ("cpu", *(machine.name for machine in machines))}
    built_in |= {f"kernel {kernel.name!r} of {machine.family}" for machine in machines for kernel in machine.kernels}
    built_in |= {f"native function {name!r}" for name in kernel_names()}
    names = _names(plugin)
    taken = [name for name in names if name in built_in]
    taken += [f"{name}, twice" for name, count in Counter(names).items() if count > 1]
    if taken:
        raise _refusal(plugin.name, "a name of it is taken", "; ".join(taken), "names that tokenspeed itself does not use")


def _names(plugin: Plugin) -> list[str]:
    """Everything it gives a name to, as error messages say it."""
    names = [f"target {target.name!r}" for target in plugin.targets]
    for item in plugin.kernel_sets:
        names += sorted({f"kernel {kernel.name!r} of {item.family}" for kernel in item.kernels})
        names += [f"native function {name!r}" for name in kernels_in(item.sources)]
    return names


def _clashes(plugins: Sequence[Plugin]) -> dict[str, str]:
    """Plugin -> what it shares with which other. All who share a name are refused: none of them has a better claim to it."""
    owners: dict[str, list[str]] = {}
    for plugin in plugins:
        for name in _names(plugin):
            owners.setdefault(name, []).append(plugin.name)
    found: dict[str, list[str]] = {}
    for name, sharing in sorted(owners.items()):
        for owner in sharing if len(sharing) > 1 else ():
            found.setdefault(owner, []).append(f"{name}, also in {', '.join(other for other in sharing if other != owner)}")
    return {owner: "; ".join(texts) for owner, texts in found.items()}


def _refusal(name: str, what: str, got: str, expected: str = "") -> PluginError:
    return PluginError(
        f"plugin {name} is not used: {what}",
        where=f"distribution {name}",
        expected=expected,
        got=" ".join(got.split())[:1000],
        fix=f"correct it, or pip uninstall {name}",
    )
