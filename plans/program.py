"""Programs: flat instruction lists over named buffers, symbolic in rows (docs/plan-format.md, "Programs").

A step is flat rows: decode rows first, then prefill chunks. Everything that varies from step to step lives in the
fixed input buffers of `STEP_INPUTS`; no instruction takes a per-step host scalar.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

import msgspec

RowCount = Annotated[str, msgspec.Meta(pattern=r"^(rows|logit_rows)((\*|//?)[1-9][0-9]{0,3}){0,4}$")]
"""`rows` or `logit_rows` of a step, times or divided by numbers, from left to right: "rows/4" is rounded up, "rows//2" down."""

Dimension = int | RowCount
DType = Literal["f64", "f32", "bf16", "f16", "i32", "i64", "u8", "i8", "i1", "f8e4m3"]
Attribute = bool | int | float | str | tuple[int, ...]

FUNCTIONS_VERSION = 1
"""Version of the functions that calls may name: compilers write it into a plan, runtimes refuse another one."""

NATIVE = "native."
"""Functions whose names begin so are kernels of the plan's own library (`Manifest.kernels`), the rest of the allow-list."""

DTYPE_BYTES: dict[str, int] = {"f64": 8, "f32": 4, "bf16": 2, "f16": 2, "i32": 4, "i64": 8, "u8": 1, "i8": 1, "i1": 1}
DTYPE_BYTES["f8e4m3"] = 1


def count_of(dimension: Dimension, symbols: Mapping[str, int]) -> int:
    """The number that a dimension stands for; `symbols` gives `rows` and `logit_rows`."""
    if isinstance(dimension, int):
        return dimension
    name, *steps = re.split("(//|[*/])", dimension)
    count = symbols[name]
    for sign, number in zip(steps[::2], map(int, steps[1::2]), strict=True):
        count = {"*": count * number, "/": -(-count // number), "//": count // number}[sign]
    return count


def base_of(count: RowCount) -> Literal["rows", "logit_rows"]:
    """Which of a step's counts it is made of."""
    return "logit_rows" if count.startswith("logit_rows") else "rows"


def symbols_of(names: Iterable[str], shapes: Mapping[str, tuple[Dimension, ...]], symbols: Mapping[str, int]) -> dict[str, int]:
    """A step's counts as a call sees them whose operands are `names`, results first: ranks may have some of the rows only."""
    found = next((extent for name in names for extent in shapes.get(name, ()) if isinstance(extent, str)), None)
    return dict(symbols) if found is None else {**symbols, base_of(found): count_of(found, symbols)}


class Buffer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A dense array in the activation arena. Its offset per bucket is in `Bucket.offsets`, same order as `Program.buffers`."""

    name: str
    dtype: DType
    shape: tuple[Dimension, ...]


class View(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A window on an arena buffer: same storage, other shape. `offset` and `strides` count elements.

    The first dimension is the symbolic row dimension of the base, so all strides are static. `skipped` rows come before it.
    """

    name: str
    base: str
    shape: tuple[Dimension, ...]
    offset: int
    strides: tuple[int, ...]
    skipped: Dimension = 0

    def start(self, symbols: Mapping[str, int]) -> int:
        """The element of the base that it begins with."""
        return self.offset + (count_of(self.skipped, symbols) * self.strides[0] if self.skipped else 0)


class Call(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="call", tag_field="kind"):
    """One pure function of the versioned allow-list, writing into its outputs.

    Operands name, in this order of resolution: a view or buffer of this program, a step input, a slot buffer, a
    constant, a weight, a KV cache (`kv.k.{i}`, `kv.v.{i}`, `kv.latent.{i}`), a
    recurrent state (`kv.state.{i}.0`, ...). Inside a `Repeat`, `{i}`, `{i+1}`, ... stand for the layer index.
    `label` is the module path this instruction came from, for people.
    """

    function: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Attribute] = {}
    label: str = ""


class Repeat(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="repeat", tag_field="kind"):
    """`body` run for i = first, first + stride, ... (`count` times). Loop-carried values share one buffer, in place."""

    first: int
    count: int
    stride: int
    body: tuple[Call, ...]


class Bucket(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Up to `rows` rows of which up to `logit_rows` need logits; arena offset of each buffer, in bytes (64-byte aligned)."""

    rows: int
    logit_rows: int
    offsets: tuple[int, ...]
    arena_bytes: int


class Program(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One rank's instruction list for one class of buckets."""

    name: str
    rank: int
    buffers: tuple[Buffer, ...]
    views: tuple[View, ...]
    body: tuple[Call | Repeat, ...]
    buckets: tuple[Bucket, ...]

    @property
    def calls(self) -> tuple[Call, ...]:
        """Every call as written, in order: those of a repeat once."""
        return tuple(call for item in self.body for call in (item.body if isinstance(item, Repeat) else (item,)))

    @property
    def is_native(self) -> bool:
        """Whether every call is a kernel of the plan's own library."""
        return all(call.function.startswith(NATIVE) for call in self.calls)


class StepInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A fixed buffer the runtime fills before each step; `shape` is at its full extent."""

    name: str
    dtype: DType
    shape: tuple[int, ...]


def in_pool(name: str, pool: int) -> str:
    """A step input of a pool: `block_tables` or `slot_mapping`, which are pool 0's as they are."""
    return f"{name}.{pool}" if pool else name


def step_inputs(max_rows: int, max_sequences: int, max_blocks_per_sequence: int, windows: int = 0) -> tuple[StepInput, ...]:
    """The step ABI, the same for all targets, of a plan with so many pools for windows.

    - `token_ids`[rows]: input token; -1 means "the token this row's slot sampled last" (so a step may be prepared
      before the step before it is complete).
    - `positions`[rows]: 0-based position of each row in its sequence.
    - `slot_mapping`[rows]: where the row's K/V go, block * block_tokens + offset; -1 writes nothing (padded rows).
    - `row_slots`[rows]: sampling slot of the row's request, -1 on padded rows.
    - `sequence_starts`[sequences + 1]: first row of each sequence; decode sequences (one row each) come first.
    - `context_lengths`[sequences]: tokens in the KV cache once this step's rows are written.
    - `block_tables`[sequences, blocks]: KV blocks of each sequence in order.
    - `logit_rows`[sequences]: the rows whose logits are wanted; `logit_slots` their sampling slots.
    - `counts`[4]: rows, decode rows, sequences, logit rows actually in use.
    - `slot_mapping.p`, `block_tables.p`: the same of window pool p. A table's entries for blocks that lie wholly before the
      window of the sequence's first row mean nothing: no kernel reads them.
    """
    rows, sequences = max_rows, max_sequences
    return (
        StepInput("token_ids", "i32", (rows,)),
        StepInput("positions", "i32", (rows,)),
        StepInput("slot_mapping", "i64", (rows,)),
        StepInput("row_slots", "i32", (rows,)),
        StepInput("sequence_starts", "i32", (sequences + 1,)),
        StepInput("context_lengths", "i32", (sequences,)),
        StepInput("block_tables", "i32", (sequences, max_blocks_per_sequence)),
        StepInput("logit_rows", "i32", (sequences,)),
        StepInput("logit_slots", "i32", (sequences,)),
        StepInput("counts", "i32", (4,)),
        *(
            item
            for pool in range(1, windows + 1)
            for item in (
                StepInput(in_pool("slot_mapping", pool), "i64", (rows,)),
                StepInput(in_pool("block_tables", pool), "i32", (sequences, max_blocks_per_sequence)),
            )
        ),
    )
