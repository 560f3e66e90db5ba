"""Expanded programs by number of rows: decode sizes stay, other sizes are kept while they are recent."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from ..plans.device_library import COLLECTIVES
from ..plans.errors import PlanError, UsageError
from ..plans.program import Bucket, Program
from ..plans.schema import Manifest
from .expand import Expansion, bucket_for, expand
from .operands import Extent, Surroundings
from .scheduling.step import CommonSize
from .weights import PlanSource

_KEPT = 128
_LOGITS = "logits"
_SAMPLE = -1


@dataclass(frozen=True)
class Programs:
    """A rank's programs: step programs by ascending size, and the sample program, which only ranks with logits have."""

    steps: tuple[Program, ...]
    sample: Program | None

    @property
    def every(self) -> tuple[Program, ...]:
        return self.steps if self.sample is None else (*self.steps, self.sample)

    @property
    def are_native(self) -> bool:
        """Whether nothing but the plan's own kernels runs."""
        return all(program.is_native for program in self.every)


def read_programs(plan: PlanSource, rank: int = 0) -> Programs:
    """The programs of a rank. Raises PlanError when one is missing or its logits are not where the sample program looks."""
    references = [item for item in plan.manifest.programs if rank in item.ranks]
    steps = sorted((item for item in references if item.role == "step"), key=lambda item: item.max_rows)
    samples = [item for item in references if item.role == "sample"]
    if not steps or len(samples) > 1:
        _refuse("programs", f"step programs and at most one sample program for rank {rank}", f"{len(steps)} and {len(samples)}")
    programs = Programs(tuple(plan.program(item.name) for item in steps), plan.program(samples[0].name) if samples else None)
    name, expected = "no sample program", ("", (), ())
    if programs.sample is not None:
        name, expected = programs.sample.name, _logits(programs.sample)
    for program in programs.steps:
        if _logits(program) != expected:
            _refuse(f"program {program.name}, {_LOGITS}", f"as in {name}: {expected}", str(_logits(program)))
    return programs


def _logits(program: Program) -> tuple[str, tuple[int | str, ...], tuple[int, ...]]:
    """dtype, shape and the distinct offsets of a program's logits."""
    for index, buffer in enumerate(program.buffers):
        if buffer.name == _LOGITS:
            return buffer.dtype, buffer.shape, tuple(sorted({bucket.offsets[index] for bucket in program.buckets}))
    return "", (), ()


class Expansions:
    """Makes and keeps expansions. With row padding "exact" there is one for each number of rows, else one per bucket.

    A program of native kernels alone is expanded once per bucket, and fitted to each step's exact size; one on a device once
    per bucket, at the bucket's size. `windows` is how many window pools the plan has.
    """

    def __init__(self, manifest: Manifest, programs: Programs, around: Surroundings, first_only: bool) -> None:
        self._programs, self._around, self._first_only = programs, around, first_only
        self._elastic = [program.is_native for program in programs.steps]  # kernels take row counts anew at each step
        self._exact = manifest.target.row_padding == "exact"
        self._decode_rows = manifest.schedule.max_decode_rows
        self.windows = len(manifest.kv.windows)
        self._decode: dict[tuple[int, int, int], Expansion] = {}
        self._recent: OrderedDict[tuple[int, int, int], Expansion] = OrderedDict()

    @property
    def axes(self) -> frozenset[str]:
        """The mesh axes along which step programs have collectives."""
        met = (call for program in self._programs.steps for call in program.calls if call.function in COLLECTIVES)
        return frozenset(str(call.attributes["axis"]) for call in met)

    def prepare(self) -> None:
        """Expand each program at its largest size, which checks it whole and grows the scratch to its final size; on a device at
        every size, so that no step waits for it."""
        samples = () if self._programs.sample is None else ((_SAMPLE, self._programs.sample),)
        for index, program in (*enumerate(self._programs.steps), *samples):
            if self._around.device is None:
                bucket = max(program.buckets, key=lambda bucket: (bucket.rows, bucket.logit_rows))
                expand(program, bucket, Extent(bucket.rows, bucket.logit_rows), self._around, self._first_only)
                continue
            for bucket in program.buckets:
                self._expansion(index, program, bucket, Extent(bucket.rows, bucket.logit_rows))

    def step(self, size: CommonSize) -> tuple[Expansion, Extent]:
        """What runs a step of that size, and the extent its inputs must be padded to. Raises UsageError when it is too large.

        Kernels of a device may count on one row of each sequence in decode buckets.
        """
        rows, logit_rows, decode = size.rows, size.logit_rows, self._around.device is None or size.decode
        for index, program in enumerate(self._programs.steps):
            bucket = bucket_for(program, rows, logit_rows, decode)
            if bucket is not None:
                whole = Extent(bucket.rows, bucket.logit_rows)
                if not self._exact:
                    return self._expansion(index, program, bucket, whole), whole
                extent = Extent(rows, logit_rows)
                if not self._elastic[index]:
                    return self._expansion(index, program, bucket, extent), extent
                expansion = self._expansion(index, program, bucket, whole)
                expansion.resize(rows, logit_rows)
                return expansion, extent
        raise UsageError("A step is larger than any bucket of the plan.", got=f"{rows} rows, {logit_rows} logit rows")

    @property
    def samples(self) -> bool:
        """Whether this rank has logits, and samples from them."""
        return self._programs.sample is not None

    def sample(self, logit_rows: int) -> tuple[Expansion, Extent]:
        """What samples that many rows, and the extent its inputs must be padded to. Raises UsageError when they are too many."""
        program = self._programs.sample
        assert program is not None, "a rank without logits does not sample"
        bucket = bucket_for(program, logit_rows, logit_rows)
        if bucket is None:
            raise UsageError("A step samples more rows than the plan allows.", got=f"{logit_rows} logit rows")
        whole, exact = Extent(bucket.rows, bucket.logit_rows), Extent(logit_rows, logit_rows)
        if self._around.device is not None:
            return self._expansion(_SAMPLE, program, bucket, whole), whole
        if not program.is_native:
            return self._expansion(_SAMPLE, program, bucket, exact), exact
        expansion = self._expansion(_SAMPLE, program, bucket, Extent(bucket.logit_rows, bucket.logit_rows))
        expansion.resize(logit_rows, logit_rows)
        return expansion, exact

    def _expansion(self, index: int, program: Program, bucket: Bucket, extent: Extent) -> Expansion:
        key = (index, extent.rows, extent.logit_rows)
        found = self._decode.get(key)
        if found is not None:
            return found
        found = self._recent.get(key)
        if found is not None:
            self._recent.move_to_end(key)
            return found
        made = expand(program, bucket, extent, self._around, self._first_only)
        if extent.rows == extent.logit_rows <= self._decode_rows:
            self._decode[key] = made
        else:
            self._recent[key] = made
            if len(self._recent) > _KEPT:
                self._recent.popitem(last=False)
        return made


def _refuse(where: str, expected: str, got: str) -> None:
    raise PlanError(
        "The plan's programs do not fit together.",
        where=where,
        expected=expected,
        got=got,
        fix="compile the plan again with tokenspeed-compile",
    )
