"""Templates of attention: rows of decoding sequences by shares of their keys, rows of chunks by tiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ...ir import module as modules
from ...ir.mlir import ir
from ...plans.device_kernels import CeilDivide, Computed, Constant, Parameter, Pointer, Product, Size
from ...plans.program import DType
from ..machine import Figure, Machine
from .attention_tiles import (
    Tiles,
    chunk_shares,
    chunk_tiles,
    float8_chunk_tiles,
    hopper_chunk_tiles,
    most_rows_in_shares,
    split_tiles,
)
from .kernel import (
    Constexpr,
    DeviceOperation,
    DeviceSetting,
    DeviceStep,
    FunctionTemplate,
    Intermediate,
    Launch,
    Operand,
    Variants,
    merged,
)
from .measured_tiles import SplitTiles, described, find_split
from .operand import MOST_ALIGNMENT, Layout, layout_of
from .rope import kv_write
from .templates import function_name, number
from .tiles import float8_means, power_of_two_above, waits_for_inputs

_PARTIAL, _WEIGHT = "partial", "weight"
_CHUNK_PARTIAL, _CHUNK_WEIGHT = "chunk_partial", "chunk_weight"
_SHARES_AT_ONCE = 32
_AT_ONCE, _HELD = 2, 64
"""Programs that a unit runs at once, and elements of a block that one of their threads holds."""

_DECODE_ROWS, _ROWS = 1, 0
"""Places in `counts`."""


TilesOf = Callable[[int | None], SplitTiles]
"""Those of decoding sequences for buckets of so many, None: of any number."""


def cached_attention(operation: ir.Operation, setting: DeviceSetting, tiles_of: TilesOf | None = None) -> DeviceOperation:
    """ts.cached_attention: (q, k_cache, v_cache, sequence_starts, context_lengths, block_tables, counts[, sinks]) -> out.

    `tiles_of` gives the tiles of decoding sequences, those of split_tiles unless given.
    """
    heads = _heads_of(operation, setting, tiles_of)
    sinks, out = (7, 8) if heads.sinks else (None, 7)
    return DeviceOperation(tuple(heads.steps((0, 1, 2, 3, 4, 5, 6), sinks, out)), heads.intermediates())


def attention(operation: ir.Operation, setting: DeviceSetting) -> DeviceOperation:
    """ts.attention: (q, k, v, slot_mapping, k_cache, v_cache, sequence_starts, context_lengths, block_tables, counts[, sinks])
    -> out: k and v are written first."""
    heads, (k, v) = _heads_of(operation, setting), map(layout_of, list(operation.operands)[1:3])
    write = DeviceStep(kv_write(k, v, setting), (1, 2, 3), (4, 5))
    sinks, out = (10, 11) if heads.sinks else (None, 10)
    return DeviceOperation((write, *heads.steps((0, 4, 5, 6, 7, 8, 9), sinks, out)), heads.intermediates())


@dataclass(frozen=True)
class ChunkGrid:
    """How attention of chunks is shared out in steps of one bucket: `tiles` by rows and kv heads, of `queries` rows each, and the
    shares that a tile's keys are cut into."""

    tiles: int
    queries: int
    kv_heads: int
    shares: int


def chunk_grid(operation: ir.Operation, setting: DeviceSetting, rows: int) -> ChunkGrid:
    """Of ts.attention or ts.cached_attention, in steps of `rows` rows."""
    return _heads_of(operation, setting).chunk_grid(rows)


def measured(operation: ir.Operation, machine: Machine, rows: int) -> Figure | None:
    """What was measured of decoding sequences of such heads. Their keys are not among the operation's cost, and so no share."""
    q = layout_of(operation.operands[0])
    cached = operation.name == "ts.cached_attention"
    kv_heads = modules.int_attribute(operation, "kv_heads") if cached else layout_of(operation.operands[1]).shape[1] or 1
    row = find_split(machine.arch, q.dtype, rows, kv_heads, q.shape[2] or 1)
    if row is None:
        return None
    contexts = " and of ".join(map(str, row.contexts))
    return Figure(None, described(machine.arch, row, f"{row.rows} sequences of {contexts} tokens, {row.kv_heads} kv heads"))


def _heads_of(operation: ir.Operation, setting: DeviceSetting, tiles_of: TilesOf | None = None) -> _Heads:
    q, *others = map(layout_of, operation.operands)
    if operation.name == "ts.cached_attention":
        kv_heads, sinks = modules.int_attribute(operation, "kv_heads"), len(others) > 0
    else:
        kv_heads, sinks = others[0].shape[1] or 1, len(others) > 2
    return _Heads(operation, setting, q, layout_of(operation.results[0]), kv_heads, sinks, tiles_of)


@dataclass(frozen=True)
class _Heads:
    """An attention: its operation (scale, softcap, window), the layouts of q and out, and whether it has sinks."""

    operation: ir.Operation
    setting: DeviceSetting
    q: Layout
    out: Layout
    kv_heads: int
    sinks: bool
    tiles_of: TilesOf | None = None

    @property
    def kept(self) -> DType:
        """What keys and values are kept as."""
        return self.setting.kv_dtype or self.q.dtype

    @property
    def group(self) -> int:
        return (self.q.shape[1] or 1) // self.kv_heads

    @property
    def width(self) -> int:
        return self.q.shape[2] or 1

    def steps(self, places: tuple[int, ...], sinks: int | None, out: int) -> list[DeviceStep]:
        """Its calls; `places` are the operands q, k_cache, v_cache, starts, lengths, tables, counts."""
        q, k_cache, v_cache, starts, lengths, tables, counts = places
        more: tuple[Operand, ...] = () if sinks is None else (sinks,)
        split = DeviceStep(self.split(), (q, k_cache, v_cache, lengths, tables, counts, *more), (out, _PARTIAL, _WEIGHT))
        merge = DeviceStep(self.merge(), (_PARTIAL, _WEIGHT, lengths, counts, *more), (out,))
        everything = (q, k_cache, v_cache, starts, lengths, tables, counts, *more)
        chunks = DeviceStep(self.chunks(), everything, (out, _CHUNK_PARTIAL, _CHUNK_WEIGHT))
        merge_chunks = DeviceStep(self.merge_chunks(), (_CHUNK_PARTIAL, _CHUNK_WEIGHT, counts, *more), (out,))
        return [split, merge, chunks, merge_chunks]

    def intermediates(self) -> tuple[Intermediate, ...]:
        """Room for the shares of the bucket that needs the most of it."""
        heads, most_rows = self.q.shape[1] or 1, self.setting.max_decode_rows
        places = max(rows * (self.split_tiles(rows).shares + 1) for rows in range(1, most_rows + 1))
        places = max(places, most_rows * (self.split_tiles(None).shares + 1)) * heads
        of_chunks = most_rows_in_shares(self.setting) * heads
        return (
            Intermediate(_PARTIAL, "f32", (places * self.width,)),
            Intermediate(_WEIGHT, "f32", (places,)),
            Intermediate(_CHUNK_PARTIAL, "f32", (of_chunks * self.width,)),
            Intermediate(_CHUNK_WEIGHT, "f32", (of_chunks,)),
        )

    def split_tiles(self, rows: int | None) -> SplitTiles:
        """For buckets of `rows` decoding sequences; None: of any number."""
        if self.tiles_of is not None:
            return self.tiles_of(rows)
        return split_tiles(self.setting, self.q.dtype, self.kv_heads, self.width, rows)

    def split(self) -> FunctionTemplate:
        inputs: tuple[DType, ...] = (*self._types(3), *self._sink_types())
        first = len(inputs)

        def launch(rows: int | None) -> Launch:
            tiles = self.split_tiles(rows)
            parameters = [self.q.pointer(0), *self._caches(1), *self._integers(3, 3), *self._sink_pointers(6)]
            parameters += [self.out.pointer(first), *(Pointer(first + at, "f32", MOST_ALIGNMENT) for at in (1, 2))]
            parameters.append(self._goal(rows, tiles.shares))
            constants = self._scores() | self._tile_constants(tiles) | {"BLOCK_H": max(16, self._padded_group)}
            constants |= self._decoding(rows)
            if self.kept == self.q.dtype:
                constants["AHEAD"] = rows is not None and self._all_at_once(rows, tiles)
            # a sequence's last share may be a part of one: a place more for each
            grid = (self._places(rows, tiles.shares + 1), self.kv_heads, 1)
            return self._launch("split", constants, parameters, grid, tiles)

        return self._function("attention_split", inputs, (self.q.dtype, "f32", "f32"), launch, decoding_only=True)

    def _places(self, rows: int | None, count: int) -> Size:
        """So many for each sequence of a decode bucket of `rows`; None: for as many as may decode."""
        return self.setting.max_decode_rows * count if rows is None else Product(factors=("rows", count))

    def _goal(self, rows: int | None, count: int) -> Parameter:
        """Shares of all sequences together, `count` for each."""
        size = self._places(rows, count)
        return Constant("i32", size) if isinstance(size, int) else Computed(size)

    def _decoding(self, rows: int | None) -> dict[str, Constexpr]:
        """Where the number of decoding sequences is found, and how many there may be."""
        most = power_of_two_above(max(2, self.setting.max_decode_rows))
        return {"COUNT": _DECODE_ROWS if rows is None else _ROWS, "SEQUENCES": most}

    def _all_at_once(self, rows: int, tiles: SplitTiles) -> bool:
        """Whether no share waits for another to end, and registers hold a block of keys and of values."""
        programs = rows * self.kv_heads * tiles.shares
        held = power_of_two_above(max(self.width, 16)) * tiles.tokens // (self.setting.accelerator.warp_size * tiles.warps)
        return (
            waits_for_inputs(self.setting.accelerator) and programs <= _AT_ONCE * self.setting.accelerator.units and held <= _HELD
        )

    def merge(self) -> FunctionTemplate:
        inputs: tuple[DType, ...] = ("f32", "f32", "i32", "i32", *self._sink_types())

        def launch(rows: int | None) -> Launch | None:
            tiles = self.split_tiles(rows)
            if rows == 1 and tiles.shares == 1:
                return None
            parameters: list[Parameter] = [Pointer(at, "f32", MOST_ALIGNMENT) for at in (0, 1)]
            parameters += [*self._integers(2, 2), *self._sink_pointers(4), self.out.pointer(len(inputs))]
            parameters.append(self._goal(rows, tiles.shares))
            constants = self._merging() | self._decoding(rows) | {"BLOCK_T": tiles.tokens, "WINDOW": self._window}
            constants["PAGE"] = min(self.setting.block_tokens, tiles.tokens)
            sequences: Size = self.setting.max_decode_rows if rows is None else "rows"
            return self._launch("merge", constants, parameters, (sequences, self.q.shape[1] or 1, 1), Tiles(0, 0, 4, 1))

        return self._function("attention_merge", inputs, (self.q.dtype,), launch, decoding_only=True)

    def _merging(self) -> dict[str, Constexpr]:
        heads, columns = self.q.shape[1], power_of_two_above(self.width)
        return {"HEADS": heads, "D": self.width, "BLOCK_S": _SHARES_AT_ONCE, "BLOCK_D": columns}

    def chunks(self) -> FunctionTemplate:
        inputs: tuple[DType, ...] = (*self._types(4), *self._sink_types())
        parameters = [self.q.pointer(0), *self._caches(1), *self._integers(3, 4), *self._sink_pointers(7)]
        first = len(inputs)
        parameters += [self.out.pointer(first), *(Pointer(first + at, "f32", MOST_ALIGNMENT) for at in (1, 2))]

        def launch(rows: int) -> Launch:
            count = self.chunk_shares(rows)
            if self.kept != self.q.dtype:
                return self._float8_chunks(parameters[:-2])
            made = self._plain_chunks([*parameters, Constant("i32", count)], count)
            for tiles in reversed(self._hopper_tiles):
                # results of shares are twice as wide, for which the longest tiles of wide heads leave no registers
                if count > 1 and tiles.tokens * self.width > 64 * 128:
                    continue
                made = replace(self._hopper_chunks(parameters, tiles, count), otherwise=made)
            return made

        return self._function_of_chunks("attention_chunks", inputs, (self.q.dtype, "f32", "f32"), launch)

    def merge_chunks(self) -> FunctionTemplate:
        inputs: tuple[DType, ...] = ("f32", "f32", "i32", *self._sink_types())

        def launch(rows: int) -> Launch | None:
            count = self.chunk_shares(rows)
            if count == 1:
                return None
            parameters: list[Parameter] = [Pointer(at, "f32", MOST_ALIGNMENT) for at in (0, 1)]
            parameters += [*self._integers(2, 1), *self._sink_pointers(3), self.out.pointer(len(inputs)), Constant("i32", count)]
            constants = self._merging() | {"DECODING": False}
            return self._launch("merge_rows", constants, parameters, ("rows", self.q.shape[1] or 1, 1), Tiles(0, 0, 4, 1))

        return self._function_of_chunks("attention_merge_chunks", inputs, (self.q.dtype,), launch)

    def chunk_shares(self, rows: int) -> int:
        """Into how many shares the keys of a chunk's rows are cut in steps of `rows` rows."""
        return self.chunk_grid(rows).shares

    def chunk_grid(self, rows: int) -> ChunkGrid:
        plain = self.kept == self.q.dtype
        if plain:
            tiles = self._hopper_tiles[0] if self._hopper_tiles else self._plain_tiles
        else:
            tiles = float8_chunk_tiles(self.setting.accelerator, self.q.dtype, self.width, self.setting.block_tokens)
        queries = self._queries(tiles)
        count = -(-rows // queries) * self.kv_heads
        return ChunkGrid(count, queries, self.kv_heads, chunk_shares(self.setting, count, rows) if plain else 1)

    @property
    def _hopper_tiles(self) -> tuple[Tiles, ...]:
        aligned = self.q.alignment == MOST_ALIGNMENT
        return hopper_chunk_tiles(self.setting, self.q.dtype, self.width, self._padded_group, aligned)

    @property
    def _plain_tiles(self) -> Tiles:
        return chunk_tiles(self.setting.accelerator, self.q.dtype, self.width, self.setting.block_tokens)

    def _plain_chunks(self, parameters: list[Parameter], count: int) -> Launch:
        def launch(tiles: Tiles) -> Launch:
            in_one_block = self.setting.block_tokens % tiles.tokens == 0 and power_of_two_above(max(self.width, 16)) == self.width
            described = tiles.described and in_one_block
            constants = self._of_chunks(tiles) | self._tile_constants(tiles) | {"DESCRIBED": described, "WHOLE": count == 1}
            grid: tuple[Size, Size, Size] = (CeilDivide("rows", self._queries(tiles)), self.kv_heads, count)
            return self._launch("chunks", constants, parameters, grid, tiles, alone=described)

        tiles = self._plain_tiles
        if count == 1:
            return launch(tiles)
        # shares want a few registers more
        return replace(launch(tiles), otherwise=launch(replace(tiles, rows=min(tiles.rows, 64), described=False)))

    def _float8_chunks(self, parameters: list[Parameter]) -> Launch:
        def launch(tiles: Tiles) -> Launch:
            grid: tuple[Size, Size, Size] = (CeilDivide("rows", self._queries(tiles)), self.kv_heads, 1)
            return self._launch("chunks", self._of_chunks(tiles) | self._tile_constants(tiles), parameters, grid, tiles)

        tiles = float8_chunk_tiles(self.setting.accelerator, self.q.dtype, self.width, self.setting.block_tokens)
        least = replace(tiles, rows=16, tokens=min(tiles.tokens, 32), warps=4, stages=1)
        return replace(launch(tiles), otherwise=launch(least))

    def _hopper_chunks(self, parameters: list[Parameter], tiles: Tiles, count: int) -> Launch:
        """Programs that stay, with descriptors in scratch, which kernels that overlap would share: it waits for the one ahead."""
        units = self.setting.accelerator.units
        sizes: dict[str, Constexpr] = {"BLOCK_T": tiles.tokens, "STAGES": tiles.stages, "UNITS": units, "SHARES": count}
        absent: dict[str, Constexpr] = {} if self.sinks else {"sinks": None}
        everything = self._of_chunks(tiles) | sizes | absent
        return Launch("hopper_attention.chunks", everything, tuple(parameters), (units, 1, 1), tiles.warps, tiles.stages)

    def _of_chunks(self, tiles: Tiles) -> dict[str, Constexpr]:
        constants = self._scores() | {"BLOCK_Q": self._queries(tiles), "BLOCK_H": self._padded_group}
        return constants | {"SEQUENCES": power_of_two_above(self.setting.max_sequences)}

    def _queries(self, tiles: Tiles) -> int:
        """Of a tile, each with all its heads."""
        return max(1, tiles.rows // self._padded_group)

    def _function(
        self,
        stem: str,
        inputs: tuple[DType, ...],
        outputs: tuple[DType, ...],
        launch: Callable[[int | None], Launch | None],
        decoding_only: bool = False,
    ) -> FunctionTemplate:
        """`launch` is given the rows of a decode bucket, None for others."""
        depends = {"setting": repr(self.setting), "scores": repr(sorted(self._scores().items())), "out": repr(self.out)}
        name = function_name(stem, self.q.dtype, [self.q.pointer(0)], depends)

        def general(bounds: Sequence[int]) -> Variants:
            return [(max(bounds), launch(None))]

        def decode(bounds: Sequence[int]) -> Variants:
            return merged([(most, launch(most)) for most in bounds])

        return FunctionTemplate(name, inputs, outputs, general, "rows", decode, decoding_only)

    def _function_of_chunks(
        self, stem: str, inputs: tuple[DType, ...], outputs: tuple[DType, ...], launch: Callable[[int], Launch | None]
    ) -> FunctionTemplate:
        """`launch` is given the rows of a bucket; decode buckets have no chunks."""
        depends = {"setting": repr(self.setting), "scores": repr(sorted(self._scores().items())), "out": repr(self.out)}
        name = function_name(stem, self.q.dtype, [self.q.pointer(0)], depends)

        def general(bounds: Sequence[int]) -> Variants:
            return merged([(most, launch(most)) for most in bounds])

        def decode(bounds: Sequence[int]) -> Variants:
            return [(max(bounds), None)]

        return FunctionTemplate(name, inputs, outputs, general, "rows", decode)

    def _launch(
        self,
        source: str,
        constants: dict[str, Constexpr],
        parameters: list[Parameter],
        grid: tuple[Size, Size, Size],
        tiles: Tiles | SplitTiles,
        alone: bool = False,
    ) -> Launch:
        """`alone`: with descriptors in scratch, which kernels that overlap would share."""
        dependent = waits_for_inputs(self.setting.accelerator) and not alone
        absent: dict[str, Constexpr] = {} if self.sinks else {"sinks": None}
        everything = constants | absent | {"DEPENDENT": dependent}
        file = "attention"
        if self.kept != self.q.dtype and not source.startswith("merge"):
            file = "float8_attention"
            means = float8_means(self.setting.accelerator, self.q.dtype)
            everything |= {"MEANS": means, "FACTOR": 1.0 if means == "instruction" else 256.0}
        return Launch(f"{file}.{source}", everything, tuple(parameters), grid, tiles.warps, tiles.stages, dependent)

    @property
    def _padded_group(self) -> int:
        return power_of_two_above(self.group)

    def _scores(self) -> dict[str, Constexpr]:
        return {
            "HEADS": self.q.shape[1],
            "KV_HEADS": self.kv_heads,
            "TOKENS": self.setting.block_tokens,
            "TABLE": self.setting.blocks_per_sequence,
            "D": self.width,
            "Q_ROW": self.q.row_stride,
            "Q_HEAD": self.q.strides[1],
            "SCALE": number(self.operation, "scale"),
            "SOFTCAP": number(self.operation, "softcap"),
            "WINDOW": self._window,
        }

    @property
    def _window(self) -> int:
        return modules.int_attribute(self.operation, "window")

    def _tile_constants(self, tiles: Tiles | SplitTiles) -> dict[str, Constexpr]:
        constants: dict[str, Constexpr] = {"BLOCK_D": power_of_two_above(max(self.width, 16)), "BLOCK_T": tiles.tokens}
        return constants | {"STAGES": tiles.stages}

    def _caches(self, first: int) -> list[Parameter]:
        return [Pointer(first + at, self.kept, MOST_ALIGNMENT) for at in (0, 1)]

    def _integers(self, first: int, count: int) -> list[Parameter]:
        return [Pointer(first + at, "i32", MOST_ALIGNMENT) for at in range(count)]

    def _types(self, integers: int) -> tuple[DType, ...]:
        """Of q, both caches and so many step inputs."""
        types: list[DType] = [self.q.dtype, self.kept, self.kept]
        return (*types, *(["i32"] * integers))  # pyright: ignore[reportReturnType]

    def _sink_types(self) -> tuple[DType, ...]:
        return (self.q.dtype,) if self.sinks else ()

    def _sink_pointers(self, place: int) -> list[Parameter]:
        return [Pointer(place, self.q.dtype, MOST_ALIGNMENT)] if self.sinks else []
