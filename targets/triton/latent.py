"""Templates of latent attention: the cache's write, queries into latent space, attention there, results out of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...ir.mlir import ir
from ...plans.device_kernels import CeilDivide, Computed, Constant, Parameter, Pointer, Size
from ...plans.program import DType
from .attention_tiles import shares
from .kernel import (
    Constexpr,
    DeviceOperation,
    DeviceSetting,
    DeviceStep,
    FunctionTemplate,
    Intermediate,
    Launch,
    Variants,
    merged,
)
from .operand import MOST_ALIGNMENT, Layout, layout_of
from .templates import function_name, number, one_function
from .tiles import power_of_two_above, waits_for_inputs

_MOST_HEADS = 64
_SHARES_AT_ONCE = 8


def latent_attention(operation: ir.Operation, setting: DeviceSetting) -> DeviceOperation:
    """ts.latent_attention: (q_nope, q_rope, kv_b, latent, k_rope, slot_mapping, cache, sequence_starts, context_lengths,
    block_tables, counts) -> out: latent and k_rope are written first."""
    q_nope, q_rope, latent, k_rope, kv_b = map(layout_of, operation.operands)
    return _Latent(operation, setting, q_nope, q_rope, latent, k_rope, kv_b, layout_of(operation.results[0])).operation_of()


@dataclass(frozen=True)
class _Latent:
    operation: ir.Operation
    setting: DeviceSetting
    q_nope: Layout
    q_rope: Layout
    latent: Layout
    k_rope: Layout
    kv_b: Layout
    out: Layout

    @property
    def heads(self) -> int:
        return self.q_nope.shape[1] or 1

    @property
    def widths(self) -> tuple[int, int, int, int]:
        """Of queries without position, of values, of the latent, of turned keys."""
        return self.q_nope.shape[2] or 1, self.out.shape[2] or 1, self.latent.columns, self.k_rope.columns

    @property
    def dependent(self) -> bool:
        return waits_for_inputs(self.setting.accelerator)

    def shares(self, rows: int | None) -> int:
        """Shares of the keys for decode buckets of `rows` rows; other buckets have rows enough."""
        return 1 if rows is None else shares(self.setting, -(-self.heads // self._block_heads), rows)

    @property
    def _block_heads(self) -> int:
        return max(16, min(_MOST_HEADS if self.latent.dtype != "f32" else 16, power_of_two_above(self.heads)))

    def operation_of(self) -> DeviceOperation:
        nope, values, rank, _ = self.widths
        # of kv_b's rows for a head the first make keys of a latent, the others values
        of_head = (nope + values) * rank
        absorb = self._by_head("absorb", self.q_nope, rank, nope, of_head, (1, rank, 0))
        dense = Layout(self.latent.dtype, (None, self.heads, rank), (self.heads * rank, rank, 1))
        project = self._by_head("project", dense, values, rank, of_head, (rank, 1, nope * rank))
        steps = (
            DeviceStep(self._write(), (3, 4, 5), (6,)),
            DeviceStep(absorb, (0, 2), ("queries",)),
            DeviceStep(self._attend(), ("queries", 1, 6, 7, 8, 9, 10), ("results", "partial", "weight")),
            DeviceStep(self._merge(), ("partial", "weight", 10), ("results",)),
            DeviceStep(project, ("results", 2), (11,)),
        )
        most = max(rows * self.shares(rows) for rows in range(1, self.setting.max_decode_rows + 1)) * self.heads
        intermediates = (
            Intermediate("queries", self.latent.dtype, ("rows", self.heads * rank)),
            Intermediate("results", self.latent.dtype, ("rows", self.heads * rank)),
            Intermediate("partial", "f32", (most * rank,)),
            Intermediate("weight", "f32", (most,)),
        )
        return DeviceOperation(steps, intermediates)

    def _write(self) -> FunctionTemplate:
        _, _, rank, width = self.widths
        constants: dict[str, Constexpr] = {"R": rank, "D": width, "BLOCK_R": power_of_two_above(rank)}
        constants |= {"BLOCK_D": power_of_two_above(width), "DEPENDENT": self.dependent}
        constants |= {"LATENT_ROW": self.latent.row_stride, "KEY_ROW": self.k_rope.row_stride}
        dtype = self.latent.dtype
        parameters = (self.latent.pointer(0), self.k_rope.pointer(1), Pointer(2, "i64", MOST_ALIGNMENT))
        everything = (*parameters, Pointer(3, dtype, MOST_ALIGNMENT))
        launch = Launch("latent.write", constants, everything, ("rows", 1, 1), 2, dependent_launch=self.dependent)
        return one_function("latent_write", launch, (dtype, dtype, "i64"), (dtype,))

    def _by_head(
        self, stem: str, x: Layout, columns: int, inner: int, of_head: int, steps: tuple[int, int, int]
    ) -> FunctionTemplate:
        """`steps` are kv_b's elements from column to column, from inner to inner, and to its first."""
        block_n, block_k = min(64, max(16, power_of_two_above(columns))), min(64, max(16, power_of_two_above(inner)))
        constants: dict[str, Constexpr] = {"N": columns, "K": inner, "X_ROW": x.strides[0], "X_HEAD": x.strides[1]}
        constants |= {"W_HEAD": of_head, "W_N": steps[0], "W_K": steps[1], "W_FIRST": steps[2]}
        constants |= {"BLOCK_N": block_n, "BLOCK_K": block_k, "DEPENDENT": self.dependent}
        dtype = x.dtype

        def launch(rows: int) -> Launch:
            height = 16 if rows <= 16 else 64
            grid: tuple[Size, Size, Size] = (-(-columns // block_n), CeilDivide("rows", height), self.heads)
            parameters = (x.pointer(0), self.kv_b.pointer(1), Pointer(2, dtype, MOST_ALIGNMENT), Computed("rows"))
            sized = constants | {"BLOCK_R": height}
            return Launch("latent.by_head", sized, parameters, grid, dependent_launch=self.dependent)

        def variants(bounds: Sequence[int]) -> Variants:
            return merged([(most, launch(most)) for most in bounds])

        name = function_name(f"latent_{stem}", dtype, launch(1).parameters, {"launch": launch(1).key})
        return FunctionTemplate(name, (dtype, dtype), (dtype,), variants)

    def _attend(self) -> FunctionTemplate:
        _, _, rank, width = self.widths
        dtype = self.latent.dtype
        inputs: tuple[DType, ...] = (dtype, dtype, dtype, "i32", "i32", "i32", "i32")
        tokens = 16 if dtype == "f32" else 32
        constants: dict[str, Constexpr] = {
            "HEADS": self.heads,
            "R": rank,
            "D": width,
            "TURNED_ROW": self.q_rope.strides[0],
            "TURNED_HEAD": self.q_rope.strides[1],
            "TOKENS": self.setting.block_tokens,
            "TABLE": self.setting.blocks_per_sequence,
            "SCALE": number(self.operation, "scale"),
            "SEQUENCES": power_of_two_above(self.setting.max_sequences),
            "BLOCK_H": self._block_heads,
            "BLOCK_R": power_of_two_above(rank),
            "BLOCK_D": max(16, power_of_two_above(width)),
            "BLOCK_T": tokens,
            "STAGES": 2,
            "DEPENDENT": self.dependent,
        }
        first: list[Parameter] = [Pointer(0, dtype, MOST_ALIGNMENT), self.q_rope.pointer(1), Pointer(2, dtype, MOST_ALIGNMENT)]
        first += [Pointer(at, "i32", MOST_ALIGNMENT) for at in range(3, 7)]
        first += [Pointer(7, dtype, MOST_ALIGNMENT), *(Pointer(at, "f32", MOST_ALIGNMENT) for at in (8, 9))]

        def launch(rows: int | None) -> Launch:
            count = self.shares(rows)
            grid: tuple[Size, Size, Size] = ("rows", -(-self.heads // self._block_heads), count)
            sized = constants | {"WHOLE": count == 1}
            parameters = (*first, Constant("i32", count))
            return Launch("latent.attend", sized, parameters, grid, 8, 2, self.dependent)

        return self._function("latent_attend", inputs, (dtype, "f32", "f32"), launch)

    def _merge(self) -> FunctionTemplate:
        rank, dtype = self.widths[2], self.latent.dtype
        constants: dict[str, Constexpr] = {"HEADS": self.heads, "D": rank, "DECODING": True, "BLOCK_S": _SHARES_AT_ONCE}
        constants |= {"BLOCK_D": power_of_two_above(rank), "sinks": None, "DEPENDENT": self.dependent}
        pointers: list[Parameter] = [Pointer(at, "f32", MOST_ALIGNMENT) for at in (0, 1)]
        pointers += [Pointer(2, "i32", MOST_ALIGNMENT), Pointer(3, dtype, MOST_ALIGNMENT)]

        def launch(rows: int | None) -> Launch | None:
            count = self.shares(rows)
            if count == 1:
                return None
            parameters = (*pointers, Constant("i32", count))
            grid: tuple[Size, Size, Size] = ("rows", self.heads, 1)
            # latents are wide, and their shares are put together in registers
            return Launch("attention.merge_rows", constants, parameters, grid, 8, dependent_launch=self.dependent)

        return self._function("latent_merge", ("f32", "f32", "i32"), (dtype,), launch)

    def _function(
        self, stem: str, inputs: tuple[DType, ...], outputs: tuple[DType, ...], launch: Callable[[int | None], Launch | None]
    ) -> FunctionTemplate:
        """`launch` is given the rows of a decode bucket, None for others."""
        depends = {"setting": repr(self.setting), "layouts": repr((self.q_nope, self.q_rope, self.latent, self.k_rope, self.out))}
        depends["scale"] = repr(number(self.operation, "scale"))

        def general(bounds: Sequence[int]) -> Variants:
            return [(max(bounds), launch(None))]

        def decode(bounds: Sequence[int]) -> Variants:
            return merged([(most, launch(most)) for most in bounds])

        name = function_name(stem, self.latent.dtype, (), depends)
        return FunctionTemplate(name, inputs, outputs, general, "rows", decode)
