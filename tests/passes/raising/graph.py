"""Builds modules of `ts.aten` operations, as importing leaves them, operation by operation."""

from __future__ import annotations

import json
from typing import Any

from tokenspeed.ir import dialect, module
from tokenspeed.ir.mlir import ir
from tokenspeed.ir.types import tensor
from tokenspeed.passes.raise_aten import raise_aten

TOKENS = {"symbol": "tokens"}
Shape = list[int | None]


class Graph:
    """A step function being built; None in a shape is the number of tokens. Values are HF's: [1, tokens, ...]."""

    def __init__(self, dtype: str = "f32") -> None:
        self.dtype = dtype
        self.module, self.block = module.new_step()

    def input(self, name: str = "token_ids") -> ir.Value:
        with ir.InsertionPoint(self.block):
            return dialect.Input(tensor("i64", [1, None]), module.text(name)).res

    def weight(self, name: str, shape: Shape, dtype: str = "") -> ir.Value:
        with ir.InsertionPoint(self.block):
            kind = tensor(dtype or self.dtype, shape)
            return dialect.Weight(kind, module.text(name), ir.ArrayAttr.get([module.text(name)])).res

    def constant(self, name: str, shape: Shape) -> ir.Value:
        with ir.InsertionPoint(self.block):
            return dialect.Constant(tensor("f32", shape), module.text(name)).res

    def call(self, target: str, *arguments: Any, shape: Shape, dtype: str = "", label: str = "", **keywords: Any) -> ir.Value:
        """One ATen operation of result type `dtype`; `target` without "aten.". Values among the arguments become operands."""
        operands: list[ir.Value] = []

        def encode(item: Any) -> Any:
            if isinstance(item, ir.Value):
                operands.append(item)
                return {"operand": len(operands) - 1}
            return [encode(part) for part in item] if isinstance(item, (list, tuple)) else item

        decoded = {"args": encode(list(arguments)), "kwargs": {name: encode(value) for name, value in keywords.items()}}
        return self._add(f"aten.{target}", operands, decoded, shape, dtype, label)

    def _add(self, target: str, operands: list[ir.Value], arguments: Any, shape: Shape, dtype: str, label: str = "") -> ir.Value:
        with ir.InsertionPoint(self.block):
            made = dialect.aten(tensor(dtype or self.dtype, shape), operands, target, json.dumps(arguments))
            module.set_label(made, label)
        return made.results[0]

    def cast(self, value: ir.Value, shape: Shape, dtype: str) -> ir.Value:
        arguments = {"args": [{"operand": 0}], "kwargs": {"dtype": {"dtype": dtype}}}
        return self._add("aten._to_copy.default", [value], arguments, shape, dtype)

    def attention(
        self, operands: list[ir.Value], scale: float, window: int = 0, softcap: float = 0.0, layer: str = "{i}"
    ) -> ir.Value:
        """q, k, v [1, heads, tokens, 8] (and sinks [heads]) -> [1, tokens, heads, 8]."""
        arguments = {"args": [scale, window, softcap, layer], "kwargs": {}}
        return self._add("tokenspeed.attention.default", operands, arguments, [1, None, 2, 8], "", "attention")

    def hidden(self, size: int = 16) -> ir.Value:
        """[1, tokens, size], from an embedding."""
        table = self.weight("embed", [50, size])
        return self.call("embedding.default", table, self.input(), shape=[1, None, size])

    def heads(self, count: int = 2, size: int = 8) -> ir.Value:
        """[1, count, tokens, size], as projections hand it to rope and attention."""
        rows = self.hidden(count * size)
        split = self.call("view.default", rows, [1, TOKENS, count, size], shape=[1, None, count, size])
        return self.call("transpose.int", split, 1, 2, shape=[1, count, None, size])

    def table(self, size: int = 8, scaling: float | None = None) -> tuple[ir.Value, ir.Value]:
        """cos and sin, [1, tokens, size]."""
        frequencies = self.constant("inv_freq", [size // 2])
        positions = self.call("unsqueeze.default", self.input("positions"), 1, shape=[1, 1, None], dtype="i64")
        positions = self.cast(positions, [1, 1, None], "f32")
        column = self.call("unsqueeze.default", frequencies, 0, shape=[1, size // 2], dtype="f32")
        column = self.call("unsqueeze.default", column, 2, shape=[1, size // 2, 1], dtype="f32")
        column = self.call("expand.default", column, [1, -1, 1], shape=[1, size // 2, 1], dtype="f32")
        angles = self.call("matmul.default", column, positions, shape=[1, size // 2, None], dtype="f32")
        angles = self.call("transpose.int", angles, 1, 2, shape=[1, None, size // 2], dtype="f32")
        twice = self.call("cat.default", [angles, angles], -1, shape=[1, None, size], dtype="f32")
        made = []
        for name in ("cos", "sin"):
            value = self.call(f"{name}.default", twice, shape=[1, None, size], dtype="f32")
            if scaling is not None:
                value = self.call("mul.Tensor", value, scaling, shape=[1, None, size], dtype="f32")
            made.append(self.cast(value, [1, None, size], self.dtype) if self.dtype != "f32" else value)
        return made[0], made[1]

    def finish(self, value: ir.Value) -> ir.Module:
        module.finish(self.block, [value])
        module.verify(self.module)
        return self.module

    def raised(self, value: ir.Value) -> ir.Module:
        """The module that gives `value` back, raised."""
        self.result = raise_aten(self.finish(value), "sample")  # kept: operations do not keep their module alive
        return self.result


def operations(parsed: ir.Module, name: str) -> list[ir.Operation]:
    return [item for item in module.walk(module.step_block(parsed)) if item.name == f"ts.{name}"]


def only(parsed: ir.Module, name: str) -> ir.Operation:
    (found,) = operations(parsed, name)
    return found
