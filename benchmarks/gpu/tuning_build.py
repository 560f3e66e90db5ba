"""Builds the candidates of tuning cases: needs Triton and MLIR, no device. What does not fit a device is dropped and counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec
from tokenspeed.plans.device_kernels import Computed, Constant, DeviceKernel, Parameter
from tokenspeed.plans.errors import ModelError
from tokenspeed.targets.accelerator import Accelerator
from tokenspeed.targets.registry import ACCELERATORS
from tokenspeed.targets.triton.attention import cached_attention
from tokenspeed.targets.triton.build import build, require_triton
from tokenspeed.targets.triton.kernel import Launch
from tokenspeed.targets.triton.linear import linear_by
from tokenspeed.targets.triton.measured_tiles import ExpertTiles, LinearTiles, SplitTiles
from tokenspeed.targets.triton.mixture import moe_experts
from tokenspeed.targets.triton.release import VERSION

from .building import Template, build_case, setting_of
from .candidates import Tiles, candidates
from .tuning_bundle import CANDIDATES, Candidate, Candidates, Sizes, read_measurements
from .tuning_cases import MOST_CONTEXT_BLOCKS, Kind, TuningCase, tuning_cases

KINDS: dict[Kind, type[Tiles]] = {"linear": LinearTiles, "attention": SplitTiles, "experts": ExpertTiles}
_BEST = 4


class Builder:
    """Builds launches for an accelerator. Launches that differ in numbers of their parameters alone share what was built."""

    def __init__(self, accelerator: Accelerator) -> None:
        require_triton()
        self.accelerator = accelerator
        self.binaries: dict[str, bytes] = {}
        self._made: dict[str, DeviceKernel | str] = {}

    def built(self, launch: Launch) -> DeviceKernel:
        """Raises ModelError where the code does not fit or does not compile, as it did the first time."""
        kept = [_promised(parameter) for parameter in launch.parameters]
        key = repr((launch.source, sorted(launch.constants.items()), kept, launch.warps, launch.stages, launch.dependent_launch))
        if key not in self._made:
            self._made[key] = self._first(launch)
        found = self._made[key]
        if isinstance(found, str):
            raise ModelError(found, where=launch.source)
        return msgspec.structs.replace(found, parameters=launch.parameters, grid=launch.grid)

    def _first(self, launch: Launch) -> DeviceKernel | str:
        from triton import CompilationError

        try:
            kernel, binary = build(launch, self.accelerator)
        except ModelError as error:
            return f"{error.got} where {error.expected}"
        except (CompilationError, RuntimeError) as error:  # passes that fail raise the latter
            return f"does not compile: {str(error).splitlines()[0]}"
        self.binaries[kernel.entry] = binary
        return kernel


def build_candidates(
    target: str, cases: Sequence[TuningCase], folder: Path, say: Callable[[str], None], earlier: Path | None = None
) -> Candidates:
    """Build all candidates of the cases into a folder; of those that the run `earlier` measured, its best alone."""
    lost = _lost(earlier)
    builder = Builder(ACCELERATORS[target])
    of_case: dict[str, list[Candidate]] = {}
    dropped: list[tuple[str, Sizes, str]] = []
    for tuned in cases:
        made = of_case.setdefault(tuned.case.name, [])
        for tiles in candidates(tuned, builder.accelerator):
            sizes: Sizes = msgspec.to_builtins(tiles)
            if tiles in lost.get(tuned.case.name, ()):
                continue
            try:
                setting = setting_of(builder.accelerator, MOST_CONTEXT_BLOCKS)
                made.append(Candidate(sizes, build_case(tuned.case, setting, builder.built, _template(tiles))))
            except ModelError as error:
                dropped.append((tuned.case.name, sizes, error.what))
        say(f"{tuned.case.name}: {len(made)} candidates, {len(builder.binaries)} binaries so far")
    found = Candidates(builder.accelerator.arch, VERSION, of_case, dropped)
    folder.mkdir(parents=True, exist_ok=True)
    for entry, data in builder.binaries.items():
        (folder / Path(entry).name).write_bytes(data)
    (folder / CANDIDATES).write_bytes(msgspec.json.encode(found))
    return found


def _lost(earlier: Path | None) -> dict[str, list[Tiles]]:
    """Of each case, the tiles that a run found slower than its best few."""
    if earlier is None:
        return {}
    kinds = {tuned.case.name: KINDS[tuned.kind] for tuned in tuning_cases()}
    cases = [case for case in read_measurements(earlier).cases if case.case in kinds]
    return {case.case: [msgspec.convert(made.tiles, kinds[case.case]) for made in case.measurements[_BEST:]] for case in cases}


def _template(tiles: Tiles) -> Template:
    if isinstance(tiles, LinearTiles):
        return partial(linear_by, tiles_of=lambda _rows: tiles)
    if isinstance(tiles, ExpertTiles):
        return partial(moe_experts, tiles_of=lambda _rows: tiles)
    return partial(cached_attention, tiles_of=lambda _rows: tiles)


def _promised(parameter: Parameter) -> str:
    """What code depends on of a parameter: not its value, but whether 16 divides it."""
    if isinstance(parameter, Constant):
        return f"{parameter.type} {isinstance(parameter.value, int) and parameter.value % 16 == 0}"
    return "computed" if isinstance(parameter, Computed) else repr(parameter)
