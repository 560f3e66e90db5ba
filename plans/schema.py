"""The manifest: everything a runtime must know before it reads anything else of a plan (docs/plan-format.md)."""

from __future__ import annotations

from typing import Literal

import msgspec

from .device_kernels import DevicePlan
from .program import Buffer, DType, StepInput
from .recipe import Recipe
from .weight_layout import Prepack, StoredType

FORMAT_MAJOR, FORMAT_MINOR = 1, 3


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Common settings: immutable, and a field that this format version does not know is refused."""


class Entry(_Part, frozen=True, kw_only=True):
    """A file of the container: its size in bytes and the SHA-256 of its bytes, in hex."""

    name: str
    size: int
    sha256: str


class Provenance(_Part, frozen=True, kw_only=True):
    """Where the plan came from; `inputs` maps an input's role to its digest, `options` are the compile options as spelled.

    `plugins` are the distributions other than the compiler's own whose targets or kernels had a say: name to version and digest.
    """

    compiler_version: str
    compiler_digest: str
    inputs: dict[str, str]
    options: dict[str, str]
    libraries: dict[str, str]
    plugins: dict[str, str] = {}


class Target(_Part, frozen=True, kw_only=True):
    """The machine the plan was compiled for. `features` must all be present on the host (names as in /proc/cpuinfo for CPUs).

    `row_padding`: "exact" runs each step at its true number of rows, "bucket" pads it to the bucket (captured graphs).
    """

    name: str
    kind: str
    features: tuple[str, ...]
    row_padding: Literal["exact", "bucket"]


class MeshAxis(_Part, frozen=True, kw_only=True):
    name: str
    size: int


class Model(_Part, frozen=True, kw_only=True):
    """What the model is, as far as serving needs it. `end_tokens` end a generation unless the request says otherwise."""

    name: str
    model_type: str
    architecture: str
    vocabulary: int
    hidden_size: int
    layers: int
    max_context: int
    dtype: DType
    parameters: int
    end_tokens: tuple[int, ...]
    begin_token: int | None
    add_begin_token: bool


class SourceTensor(_Part, frozen=True, kw_only=True):
    """A checkpoint tensor. `encoding` is a safetensors dtype ("F32", "BF16") or a GGUF block type ("Q4_1"); `shape` is
    row-major and logical; `bytes` as stored. `digest` is None in a shape-only plan; else hex SHA-256 over the
    concatenated SHA-256 digests of its 64 MiB chunks, which are in `chunks` where there are several, so that a rank can check
    those it reads. `entry` names the plan's own copy when weights are bundled.
    """

    name: str
    encoding: str
    shape: tuple[int, ...]
    bytes: int
    digest: str | None = None
    chunks: tuple[str, ...] = ()
    entry: str | None = None


class Weight(_Part, frozen=True, kw_only=True):
    """A weight that programs name. Templated when its layers are many: one instance for each index in `layers`.

    `shape`, `dtype` and `bytes` are of one final instance on this rank. `prepack` names the layout a kernel wants at
    load; `stored_bytes` of plans/weight_layout.py says how many bytes that takes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: StoredType
    bytes: int
    recipe: Recipe
    layers: tuple[int, ...] = ()
    prepack: Prepack = "none"


class Constant(_Part, frozen=True, kw_only=True):
    """A small array computed at compile time, e.g. rope's inv_freq; raw little-endian bytes in the container entry `entry`."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    entry: str


class KvGroup(_Part, frozen=True, kw_only=True):
    """Layers whose KV caches have one geometry. A cache of one layer is [blocks, block_tokens, heads, head_dim], dense.

    "paged" layers have two, of keys and of values; "latent" ones have one, whose rows are a latent followed by the rotated key
    that all heads share (multi-head latent attention; `heads` is 1). In a "head_major" block the heads lie one after the other,
    each with all its tokens: [blocks, heads, block_tokens, head_dim] in memory, the shape as seen by functions unchanged.
    `pool` says whose blocks these are: 0 those of `KvGeometry`, p those of its `windows[p - 1]`.
    """

    name: str
    kind: Literal["paged", "latent"]
    layers: tuple[int, ...]
    heads: int
    head_dim: int
    dtype: DType
    window: int | None = None
    block_order: Literal["token_major", "head_major"] = "token_major"
    pool: int = 0


class WindowPool(_Part, frozen=True, kw_only=True):
    """Blocks, of `block_tokens` tokens as all, for layers that see the last `window` tokens alone: a block that no row still to
    come can see is free again. `bytes_per_block` are those of all layers of the pool's groups, `host_blocks` as of pool 0."""

    window: int
    blocks: int
    bytes_per_block: int
    host_blocks: int = 0


class StateGroup(_Part, frozen=True, kw_only=True):
    """Layers whose recurrent states are alike. State n of a layer is an array [slots, *shapes[n]]: one entry for each sampling
    slot, of fixed size whatever a sequence's length: it is in no block, and prefixes cannot share it."""

    name: str
    layers: tuple[int, ...]
    slots: int
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[DType, ...]


class KvGeometry(_Part, frozen=True, kw_only=True):
    """`identity_tokens` is what a prefix hash covers; `block_tokens`, the physical block, divides it. `compatibility` seeds the
    hash chain: KV computed under two plans with the same value is interchangeable. `blocks` is the size of pool 0, whose blocks a
    sequence keeps for all its tokens, and `bytes_per_block` what one takes over all layers of its groups: 0 where every layer has
    a window. Pool p is `windows[p - 1]`. `states` are what recurrent layers keep instead of keys and values, or besides.
    `host_blocks` is how many more blocks each rank keeps in its host's memory, in the same layout: what sequences do not use now
    goes there before it is forgotten.
    """

    identity_tokens: int
    block_tokens: int
    blocks: int
    bytes_per_block: int
    compatibility: str
    groups: tuple[KvGroup, ...]
    states: tuple[StateGroup, ...] = ()
    host_blocks: int = 0
    windows: tuple[WindowPool, ...] = ()

    @property
    def pool_blocks(self) -> tuple[int, ...]:
        """Blocks of each pool."""
        return (self.blocks, *(pool.blocks for pool in self.windows))

    @property
    def pool_block_bytes(self) -> tuple[int, ...]:
        """Bytes of a block of each pool."""
        return (self.bytes_per_block, *(pool.bytes_per_block for pool in self.windows))

    @property
    def pool_host_blocks(self) -> tuple[int, ...]:
        """Blocks of each pool in the memory of each rank's host."""
        return (self.host_blocks, *(pool.host_blocks for pool in self.windows))

    @property
    def host_bytes(self) -> int:
        """Of all pools, in the memory of each rank's host."""
        return sum(blocks * size for blocks, size in zip(self.pool_host_blocks, self.pool_block_bytes, strict=True))

    @property
    def bytes(self) -> int:
        """Of all pools."""
        return sum(blocks * size for blocks, size in zip(self.pool_blocks, self.pool_block_bytes, strict=True))

    @property
    def shares_prefixes(self) -> bool:
        """Whether cached blocks hold all that a sequence needs to go on behind them; recurrent states are not in them."""
        return not self.states

    @property
    def prefix_reuse(self) -> str:
        """Whether requests reuse what was computed for equal prefixes, in words, with the reason where they do not."""
        return "on" if self.shares_prefixes else "off: recurrent states are kept by sequence, cached blocks do not hold them"


class Schedule(_Part, frozen=True, kw_only=True):
    """Limits the scheduler works within, fixed from the traffic profile. All counts are of rows or requests."""

    max_rows: int
    max_decode_rows: int
    max_sequences: int
    prefill_chunk: int
    max_waiting: int
    traffic: dict[str, float]


class MemoryPlan(_Part, frozen=True, kw_only=True):
    """Bytes of device memory by purpose. All but `workspace` (library scratch) and `overhead` (driver, allocator) are exact."""

    weights: int
    constants: int
    arena: int
    inputs: int
    slots: int
    kv: int
    communication: int
    workspace: int
    overhead: int
    states: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, name) for name in self.__struct_fields__)


class ProgramReference(_Part, frozen=True, kw_only=True):
    """`role` "step" runs the model over rows and leaves `logits`; "sample" turns logits into tokens. Pick the first step
    program whose largest bucket holds the step. `rank` runs it, and so do the ranks `others`. `shift` is added to the layer that
    each repeat of the entry's program begins with: stages that are alike but for their layers share an entry.
    """

    name: str
    role: Literal["step", "sample"]
    entry: str
    rank: int
    max_rows: int
    others: tuple[int, ...] = ()
    shift: int = 0

    @property
    def ranks(self) -> tuple[int, ...]:
        """All that run it."""
        return (self.rank, *self.others)


class CostRow(_Part, frozen=True, kw_only=True):
    """Work of one step at a bucket, of each rank: floating-point operations, bytes moved, instructions launched, and the seconds
    that ranks meet in collectives (plans/perf_model.py).

    `attention_share` is what attention of prompts reaches of its rate in steps of this bucket. However few rows a prompt has, its
    attention takes no less than `attention_rows` rows behind the same context take at the full rate. `products_share` is what its
    products reach of what others do (of experts each has few rows).
    """

    rows: int
    flops: float
    weight_bytes: float
    activation_bytes: float
    instructions: int
    communication: float = 0.0
    attention_share: float = 1.0
    attention_rows: float = 0.0
    products_share: float = 1.0


class Rate(_Part, frozen=True, kw_only=True):
    """A hardware figure with its unit, where it is from, and whether it is nominal or measured."""

    value: float
    unit: str
    source: str
    basis: Literal["nominal", "measured"]


class Performance(_Part, frozen=True, kw_only=True):
    """Cost tables and rates; `predictions` holds seconds (ttft, tpot) and tokens per second for the traffic profile."""

    rates: dict[str, Rate]
    step_costs: tuple[CostRow, ...]
    attention_flops_per_token_pair: float
    kv_bytes_per_token: float
    predictions: dict[str, float]


class TokenizerReference(_Part, frozen=True, kw_only=True):
    """Container entries of tokenizer.json and of the chat template ("" when absent), and text of special tokens by role."""

    entry: str
    chat_template_entry: str
    special_tokens: dict[str, str]


class Golden(_Part, frozen=True, kw_only=True):
    """A replayable check: container entry and what it covers."""

    name: str
    entry: str
    weights: Literal["counter", "checkpoint"]


class KernelLibrary(_Part, frozen=True, kw_only=True):
    """A shared object of kernels in entry `entry`, for the target's instruction set, that needs no other library.

    A call of `native.NAME` runs its kernel NAME. `interface` is the version of the records that calls are handed over in.
    """

    entry: str
    interface: int
    kernels: tuple[str, ...]
    compiler: str


class StagePart(_Part, frozen=True, kw_only=True):
    """What a stage has of something that the manifest lists by name: `layers` of it, () for what has no layers."""

    name: str
    layers: tuple[int, ...] = ()


class Crossing(_Part, frozen=True, kw_only=True):
    """A value that a stage sends to the next one: `shape` elements of `dtype` for each row of a step. `rows` is how many of them
    a rank has, as programs say it: all, or a part ("rows/2")."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    rows: str = "rows"


class Stage(_Part, frozen=True, kw_only=True):
    """Consecutive layers, from `first` on, that ranks of one place on mesh axis "pp" run; each of them has all that is said here.

    `weights`, KV `groups` and recurrent `states` are parts of the manifest's lists of those names. `receives` and `sends` are in
    the order in which they cross. Costs are of this stage alone.
    """

    first: int
    layers: int
    weights: tuple[StagePart, ...]
    groups: tuple[StagePart, ...]
    states: tuple[StagePart, ...]
    receives: tuple[Crossing, ...]
    sends: tuple[Crossing, ...]
    memory: MemoryPlan
    step_costs: tuple[CostRow, ...]
    attention_flops_per_token_pair: float
    kv_bytes_per_token: float


class Manifest(_Part, frozen=True, kw_only=True):
    """manifest.json. Field rules and compatibility promise: docs/plan-format.md."""

    format: tuple[int, int]
    minimum_runtime: str
    functions_version: int
    provenance: Provenance
    target: Target
    mesh: tuple[MeshAxis, ...]
    model: Model
    programs: tuple[ProgramReference, ...]
    step_inputs: tuple[StepInput, ...]
    slot_buffers: tuple[Buffer, ...]
    sources: tuple[SourceTensor, ...]
    weights: tuple[Weight, ...]
    constants: tuple[Constant, ...]
    kv: KvGeometry
    schedule: Schedule
    memory: MemoryPlan
    performance: Performance
    tokenizer: TokenizerReference | None
    goldens: tuple[Golden, ...]
    kernels: KernelLibrary | None = None
    device: DevicePlan | None = None
    stages: tuple[Stage, ...] = ()
    entries: tuple[Entry, ...]


class PlacementDecision(_Part, frozen=True, kw_only=True):
    """How one operation lies on a mesh axis; entry `placements.json` holds a tuple of these. `cut` names the factor of its rule
    (ir/sharding.py) that is cut, "" for none; `operands` and `results` are their placements. Seconds are of all its runs in an
    expected step, changes of placement around it included; the runner-up is the best other way, all else being as it is.
    """

    operation: str
    label: str
    axis: str
    cut: str
    operands: tuple[str, ...]
    results: tuple[str, ...]
    seconds: float
    runner_up: str
    runner_up_seconds: float | None


class MeshCandidate(_Part, frozen=True, kw_only=True):
    """A mesh that was weighed for a plan; entry `meshes.json` holds a tuple of these, the one that was taken first.

    `basis`: "searched" layouts are predicted for the traffic; of a "bound" it is known that no layout is better than these
    figures, and none was searched; what "does not fit" has a reason. `weight_bytes` are of a rank, `tokens` what all caches
    together hold.
    """

    mesh: tuple[MeshAxis, ...]
    basis: Literal["searched", "bound", "does not fit"]
    weight_bytes: float = 0.0
    tokens: int | None = None
    output_tokens_per_second: float = 0.0
    tpot_seconds: float = 0.0
    ttft_seconds: float = 0.0
    reason: str = ""


class Decision(_Part, frozen=True, kw_only=True):
    """Why one operation runs as it does; entry `decisions.json` holds a tuple of these. Seconds at `rows` rows."""

    program: str
    operation: str
    label: str
    times: int
    kernel: str
    reason: str
    runner_up: str
    rows: int
    predicted_seconds: float
    runner_up_seconds: float | None
    bound: Literal["bandwidth", "compute", "dispatch"]
    roofline_share: float
