"""Device kernels of a plan: machine code of an accelerator and everything needed to launch it (docs/plan-format.md).

The code was compiled ahead of time, one module per kernel. Nothing here is evaluated as a program: sizes are closed expressions
of the bucket's row counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Literal

import msgspec

from .weight_layout import StoredType

DEVICE = "device."
"""Functions whose names begin so are device functions of the plan (`Manifest.device`)."""

Vendor = Literal["cuda", "hip"]
Symbol = Literal["rows", "logit_rows"]


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Common settings: immutable, and a field that this format version does not know is refused."""


class CeilDivide(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="ceil_divide", tag_field="kind"):
    """`of` divided by `by`, rounded up."""

    of: Symbol
    by: int


class Product(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="product", tag_field="kind"):
    """The factors multiplied."""

    factors: tuple[int | Symbol | CeilDivide, ...]


Size = int | Symbol | CeilDivide | Product
"""A number that is known once the bucket is."""


def evaluate(size: Size, symbols: Mapping[str, int]) -> int:
    """The number that a size stands for; `symbols` gives `rows` and `logit_rows` of the bucket."""
    if isinstance(size, int):
        return size
    if isinstance(size, str):
        return symbols[size]
    if isinstance(size, CeilDivide):
        return -(-symbols[size.of] // size.by)
    return prod(evaluate(factor, symbols) for factor in size.factors)


class Pointer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="pointer", tag_field="kind"):
    """The address of operand `operand` (inputs, then outputs), elements of `dtype` (or its blocks); the code relies on a multiple
    of `alignment` bytes."""

    operand: int
    dtype: StoredType
    alignment: int = 1


class Constant(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="constant", tag_field="kind"):
    """A scalar that is always the same."""

    type: Literal["i32", "i64", "f32"]
    value: int | float


class Computed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="computed", tag_field="kind"):
    """A 32-bit integer that follows from the bucket; the code relies on a multiple of `divisor`."""

    size: Size
    divisor: int = 1


Parameter = Pointer | Constant | Computed


class Scratch(_Part, frozen=True, kw_only=True):
    """Device memory a kernel wants beside its operands, in bytes for each program of its grid."""

    bytes: int = 0
    alignment: int = 1


class KernelReceipt(_Part, frozen=True, kw_only=True):
    """What made the binary and what it uses: registers and spilled bytes of a thread."""

    compiler: str
    version: str
    registers: int
    spills: int


class DeviceKernel(_Part, frozen=True, kw_only=True):
    """A function of one binary and how it is launched.

    `entry` is kernels/<SHA-256 of its bytes>.cubin or .hsaco. A block has `warps` x the device's warp size threads and
    `shared_bytes` of dynamic shared memory; `grid` counts clusters of `cluster` blocks along x. `parameters` are the declared
    ones in order: two scratch pointers always follow them. With `dependent_launch` the kernel may begin before the one
    ahead of it has ended, and waits for it by itself.
    """

    name: str
    entry: str
    symbol: str
    warps: int
    shared_bytes: int
    parameters: tuple[Parameter, ...]
    grid: tuple[Size, Size, Size]
    cluster: int = 1
    global_scratch: Scratch = Scratch()
    profile_scratch: Scratch = Scratch()
    dependent_launch: bool = False
    receipt: KernelReceipt


class Variant(_Part, frozen=True, kw_only=True):
    """The kernel for buckets of up to `most` rows; None: nothing is to be done there."""

    most: int
    kernel: str | None


class DeviceFunction(_Part, frozen=True, kw_only=True):
    """What a call `device.NAME` runs: the first variant that holds the bucket's count of `by`.

    `inputs` and `outputs` are the element types of its operands, block types of weights among them. In a decode bucket (rows ==
    logit_rows), whose steps have one row of each sequence, it is `decode` that counts, where that is not empty. `decoding_only`:
    it does the rows of decoding sequences alone (counts[1] of the step inputs), so that a step without any need not run it; nor
    does a step that wants no logits need what is `by` logit_rows.
    """

    name: str
    inputs: tuple[StoredType, ...]
    outputs: tuple[StoredType, ...]
    variants: tuple[Variant, ...]
    decode: tuple[Variant, ...] = ()
    by: Symbol = "rows"
    decoding_only: bool = False

    def variant_for(self, symbols: Mapping[str, int]) -> Variant | None:
        """The variant for a bucket, None if it has more rows than any holds."""
        choices = self.decode if self.decode and symbols["rows"] == symbols["logit_rows"] else self.variants
        return next((item for item in choices if symbols[self.by] <= item.most), None)


class Exchange(_Part, frozen=True, kw_only=True):
    """Memory of each rank, `bytes` of it, all zeros at first, that the other ranks along mesh axis `axis` write into.

    Calls read under `name` an i64 array: where each rank's begins, in their order along the axis, then
    this rank's place among them.
    """

    name: str
    axis: str
    bytes: int


class DevicePlan(_Part, frozen=True, kw_only=True):
    """The accelerator a plan runs on and the code for it.

    `architecture` as the vendor spells it (sm_90a, gfx942); the device must be exactly that. `memory_bytes` is the device memory
    the plan was made for. `graph_rows` are the rows of the decode buckets (each row wants its logits) that are captured
    as graphs when the plan is loaded. `exchanges` are part of the plan's memory for communication.
    """

    vendor: Vendor
    architecture: str
    memory_bytes: int
    graph_rows: tuple[int, ...]
    functions: tuple[DeviceFunction, ...]
    kernels: tuple[DeviceKernel, ...]
    exchanges: tuple[Exchange, ...] = ()
