"""What an operation becomes on an accelerator: templates of device functions, before anything is compiled.

A template says what to build for which bucket. `build.py` compiles its launches; the compiler makes a plan's `device` section of
both. Nothing here imports Triton.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ...ir.mlir import ir
from ...plans.device_kernels import Exchange, Parameter, Size, Symbol
from ...plans.program import Attribute, Dimension, DType
from ...plans.weight_layout import StoredType
from ..accelerator import Accelerator

Constexpr = bool | int | float | str | None


@dataclass(frozen=True)
class DeviceSetting:
    """What a plan's steps are like, for templates that depend on it: the limits of its schedule and its KV blocks.

    KV caches lie as [blocks, kv heads, block_tokens, D] (head_major), latent ones as [blocks, block_tokens, 1, D].
    """

    # names of functions are made of a setting's text, in which addresses of an accelerator's kernels must not be
    accelerator: Accelerator = field(repr=False)
    max_rows: int
    max_decode_rows: int
    max_sequences: int
    block_tokens: int
    blocks_per_sequence: int
    kv_dtype: DType | None = None
    """Of paged keys and values; None: the attention's own."""

    @property
    def max_context(self) -> int:
        """Tokens that a block table has room for."""
        return self.block_tokens * self.blocks_per_sequence


@dataclass(frozen=True)
class Launch:
    """One Triton function made concrete, and how it is launched.

    `source` is "FILE.FUNCTION" of targets/triton/sources. `constants` are its constexpr arguments by name, `parameters` all the
    others in the order of the source. `grid` is in blocks. `otherwise` is launched where this does not fit the device.
    """

    source: str
    constants: Mapping[str, Constexpr]
    parameters: tuple[Parameter, ...]
    grid: tuple[Size, Size, Size]
    warps: int = 4
    stages: int = 2
    dependent_launch: bool = False
    options: Mapping[str, int | bool | str] = field(default_factory=dict)
    otherwise: Launch | None = None

    @property
    def key(self) -> str:
        """Equal for launches that are the same."""
        maps = (sorted(self.constants.items()), sorted(self.options.items()))
        return repr((self.source, maps, self.parameters, self.grid, self.warps, self.stages, self.dependent_launch))


Variants = Sequence[tuple[int, Launch | None]]
"""(Most rows, what runs for buckets up to there), ascending; None: nothing runs."""


@dataclass(frozen=True)
class FunctionTemplate:
    """A device function of a plan. `name` is unique for what the code depends on.

    `inputs` and `outputs` are element types; parameters count operands in this order. `variants` takes the ascending counts of
    `by` that buckets have. `decode` does the same for buckets in which every row wants its logits (rows == logit_rows), so that
    each row is a sequence of its own; None: the same as other buckets. Where a template of a plan has one, a step with several
    rows of a sequence must not run in such a bucket. `decoding_only`: a step without decoding sequences need not run it.
    """

    name: str
    inputs: tuple[StoredType, ...]
    outputs: tuple[StoredType, ...]
    variants: Callable[[Sequence[int]], Variants]
    by: Symbol = "rows"
    decode: Callable[[Sequence[int]], Variants] | None = None
    decoding_only: bool = False


Operand = int | str
"""An operand of the operation's call (inputs, then outputs), or the name of an intermediate buffer or of an exchange."""


@dataclass(frozen=True)
class DeviceStep:
    """One call of a device function. Inputs that a function updates in place, such as caches, are among its outputs."""

    function: FunctionTemplate
    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]


@dataclass(frozen=True)
class LibraryStep:
    """One call of a function of the runtime's allow-list."""

    function: str
    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    attributes: Mapping[str, Attribute]


@dataclass(frozen=True)
class Intermediate:
    """A buffer that lives from one step of an operation to a later one. Its contents are undefined at first."""

    name: str
    dtype: DType
    shape: tuple[Dimension, ...]


@dataclass(frozen=True)
class DeviceOperation:
    """The device calls of an operation, in order.

    Operands are numbered as those of the operation's call in programs for the CPU (passes/lower.py), inputs first.
    `ts.attention`, which is two calls there, has (q, k, v, slot_mapping, k_cache, v_cache, sequence_starts, context_lengths,
    block_tables, counts[, sinks]) -> (out), and `ts.latent_attention` (q_nope, q_rope, kv_b, latent, k_rope, slot_mapping,
    cache, sequence_starts, context_lengths, block_tables, counts) -> (out). `more` are values of the IR that it reads besides,
    numbered after its outputs; `exchanges` are named by steps that read where they are. Calls of the library,
    `before`, come first.
    """

    steps: tuple[DeviceStep, ...]
    intermediates: tuple[Intermediate, ...] = ()
    more: tuple[ir.Value, ...] = ()
    exchanges: tuple[Exchange, ...] = ()
    before: tuple[LibraryStep, ...] = ()


def single(function: FunctionTemplate) -> DeviceOperation:
    """An operation that is one function over all its operands in order."""
    count = len(function.inputs)
    outputs = range(count, count + len(function.outputs))
    return DeviceOperation((DeviceStep(function, tuple(range(count)), tuple(outputs)),))


def merged(choices: Sequence[tuple[int, Launch | None]]) -> Variants:
    """The same choices with neighbours of equal launches made one."""
    kept: list[tuple[int, Launch | None]] = []
    for most, launch in choices:
        if kept and _key(kept[-1][1]) == _key(launch):
            kept.pop()
        kept.append((most, launch))
    return kept


def always(launch: Launch) -> Callable[[Sequence[int]], Variants]:
    """Variants of a function that is launched alike for every bucket."""
    return lambda bounds: [(max(bounds), launch)]


def _key(launch: Launch | None) -> object:
    return None if launch is None else launch.key
