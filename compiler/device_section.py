"""codegen for accelerators: the manifest's `device` part, and the machine code of every kernel as an entry of the plan."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ..passes.schedule import BucketSize
from ..plans.device_kernels import DeviceFunction, DeviceKernel, DevicePlan, Exchange, Variant, Vendor
from ..plans.program import Program, symbols_of
from ..targets.accelerator import Accelerator
from ..targets.triton.build import build
from ..targets.triton.build_many import build_many
from ..targets.triton.kernel import FunctionTemplate, Launch, Variants
from ..targets.triton.packing import BOUNDS


def device_section(
    accelerator: Accelerator,
    templates: Mapping[str, FunctionTemplate],
    programs: Sequence[Program],
    graph_rows: tuple[int, ...],
    memory_bytes: int,
    loading: Sequence[FunctionTemplate] = (),
    exchanges: Iterable[Exchange] = (),
) -> tuple[DevicePlan, dict[str, bytes]]:
    """The device part of a plan and its binaries by entry; every launch of every bucket is compiled, equal ones once.

    `templates` are those of all functions that the programs call, by name; `loading` are functions that weights are loaded by,
    `exchanges` what calls name of the other ranks.
    Raises ModelError when code does not fit the device.
    """
    kernels = _Kernels(accelerator)
    chosen = [(templates[name], *_launches(templates[name], _sizes(name, programs))) for name in sorted(templates)]
    chosen += [(template, template.variants(BOUNDS), ()) for template in loading]
    with kernels:
        kernels.build(launch for _, *both in chosen for variants in both for _, launch in variants if launch is not None)
    functions = [_function(template, others, decode, kernels) for template, others, decode in chosen]
    assert accelerator.kind in {"cuda", "hip"}
    vendor: Vendor = "hip" if accelerator.kind == "hip" else "cuda"
    plan = DevicePlan(
        vendor=vendor,
        architecture=accelerator.arch,
        memory_bytes=memory_bytes,
        graph_rows=graph_rows,
        functions=tuple(functions),
        kernels=tuple(kernels.made[key] for key in sorted(kernels.made, key=lambda key: kernels.made[key].name)),
        exchanges=tuple(exchanges),
    )
    return plan, kernels.entries


def every_launch(templates: Mapping[str, FunctionTemplate], programs: Sequence[Program]) -> Iterator[Launch]:
    """What a plan's machine code is built from: the launches of every bucket, nothing of them built. `templates` as above."""
    for name in sorted(templates):
        for variants in _launches(templates[name], _sizes(name, programs)):
            yield from (launch for _, launch in variants if launch is not None)


class _Kernels:
    """Compiles launches, each once; what the compiler of one made is used for others of the same code."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._cache = tempfile.TemporaryDirectory(prefix="tokenspeed-kernels-")
        self.made: dict[str, DeviceKernel] = {}
        self.entries: dict[str, bytes] = {}

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._cache.cleanup()

    def build(self, launches: Iterable[Launch]) -> None:
        """Build launches, and what is launched instead of those that do not fit.

        Raises ModelError where there is nothing else.
        """
        wanted = list({launch.key: launch for launch in launches if launch.key not in self.made}.values())
        instead: list[Launch] = []
        for launch, built in zip(wanted, build_many(wanted, self._accelerator, self._cache.name), strict=True):
            if built is None and launch.otherwise is not None:
                instead.append(launch.otherwise)
                continue
            kernel, binary = built or build(launch, self._accelerator, self._cache.name)  # which says why it cannot be
            self.made[launch.key], self.entries[kernel.entry] = kernel, binary
        if instead:
            self.build(instead)

    def name(self, launch: Launch | None) -> str | None:
        """The name of a launch's kernel in the plan."""
        while launch is not None and launch.key not in self.made:
            launch = launch.otherwise
        return None if launch is None else self.made[launch.key].name


def _sizes(name: str, programs: Sequence[Program]) -> list[BucketSize]:
    """The buckets in which a function is called, with the rows that it sees there."""
    found: list[BucketSize] = []
    for program in programs:
        shapes = {item.name: item.shape for item in (*program.buffers, *program.views)}
        calling = [call for call in program.calls if call.function.endswith(f".{name}")]
        for bucket in program.buckets:
            symbols = {"rows": bucket.rows, "logit_rows": bucket.logit_rows}
            found += [BucketSize(**symbols_of((*call.outputs, *call.inputs), shapes, symbols)) for call in calling]
    return list(dict.fromkeys(found))


def _function(template: FunctionTemplate, of_others: Variants, of_decode: Variants, kernels: _Kernels) -> DeviceFunction:
    return DeviceFunction(
        name=template.name,
        inputs=template.inputs,
        outputs=template.outputs,
        variants=_variants(of_others, kernels),
        decode=_variants(of_decode, kernels),
        by=template.by,
        decoding_only=template.decoding_only,
    )


def _launches(template: FunctionTemplate, sizes: Sequence[BucketSize]) -> tuple[Variants, Variants]:
    """Those of `variants` and of `decode`."""
    decode = [size for size in sizes if size.rows == size.logit_rows]
    others = sizes if template.decode is None else [size for size in sizes if size.rows != size.logit_rows]
    of_decode = () if template.decode is None else template.decode(_bounds(template, decode))
    return template.variants(_bounds(template, others)), of_decode


def _bounds(template: FunctionTemplate, sizes: Iterable[BucketSize]) -> list[int]:
    return sorted({size.logit_rows if template.by == "logit_rows" else size.rows for size in sizes})


def _variants(chosen: Variants, kernels: _Kernels) -> tuple[Variant, ...]:
    return tuple(Variant(most=most, kernel=kernels.name(launch)) for most, launch in chosen)
