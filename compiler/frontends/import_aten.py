"""Import: the cleaned ATen graph as a module of `ts.aten` operations, layers folded into `ts.repeat`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.export.graph_signature import InputKind
from torch.fx import Node

from ...ir import dialect
from ...ir import module as modules
from ...ir.mlir import ir
from ...ir.types import dtype_of, tensor
from ...plans.errors import ModelError
from ...plans.template import shift
from .aten_graph import AtenGraph, Segment, clean, module_path, result_of, target_name, value_of
from .recurrence import STEP_ROWS, Mixer
from .recurrent_step import is_of_rows, split_step
from .repeats import RepeatedPattern, fold
from .trace import TracedModel, placeholder_targets

STEP_INPUT_NAMES = ("token_ids", "positions")
_DTYPE_NAMES = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.bfloat16: "bf16",
    torch.float16: "f16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.bool: "i1",
    torch.uint8: "u8",
}

_SAME = {
    "aten.concat.default": "aten.cat.default",
    "aten.concatenate.default": "aten.cat.default",
    "aten.divide.Tensor": "aten.div.Tensor",
    "aten.multiply.Tensor": "aten.mul.Tensor",
    "aten.subtract.Tensor": "aten.sub.Tensor",
}
"""Other names of operations."""

Environment = dict[Node, ir.Value]


def import_model(traced: TracedModel) -> ir.Module:
    """The traced model as a module, still in ATen operations. Must run inside an IR context."""
    return _Importer(traced).run()


def _type_of(node: Node, rows: int = -1) -> ir.RankedTensorType:
    """The node's type; `rows` is a size that stands for rows, beside those that the trace left open."""
    value = value_of(node)
    shape = [size if isinstance(size, int) and size != rows else None for size in value.shape]
    return tensor(_DTYPE_NAMES[value.dtype], shape)


class _Importer:
    def __init__(self, traced: TracedModel) -> None:
        self.traced, self.exported = traced, traced.exported
        self.graph: AtenGraph = clean(traced)
        self.targets = placeholder_targets(traced.exported)
        ids = next(node for node in self.graph.inputs if self.targets[node.name][0] == InputKind.USER_INPUT)
        self.tokens: Any = value_of(ids).shape[1]

    def run(self) -> ir.Module:
        module, block = modules.new_step()
        values: Environment = {}
        with ir.InsertionPoint(block):
            user_inputs = iter(STEP_INPUT_NAMES)
            for node in self.graph.inputs:
                if self.targets[node.name][0] == InputKind.USER_INPUT:
                    values[node] = dialect.Input(_type_of(node), modules.text(next(user_inputs))).res
            self._emit(self.graph.prologue, values, layer=None)
            if self.graph.layers:
                self._emit_layers(values)
            self._emit(self.graph.epilogue, values, layer=None)
            modules.finish(block, [values[self.graph.logits]])
        modules.verify(module)
        return module

    def _emit_layers(self, values: Environment) -> None:
        hidden_node, last = self.graph.layers[0].live_in, self.graph.layers[-1].live_out
        assert hidden_node is not None and last is not None
        hidden = values[hidden_node]
        for run in fold(self.traced.kinds):
            hidden = self._repeat(run, hidden, values)
        values[last] = hidden

    def _repeat(self, run: RepeatedPattern, hidden: ir.Value, outer: Environment) -> ir.Value:
        if not any(self.graph.layers[kind].nodes for kind in run.pattern):
            return hidden  # text goes past these layers
        repeat = dialect.Repeat(
            [hidden.type],
            [hidden],
            modules.integer(run.first),
            modules.integer(run.count),
            modules.integer(len(run.pattern)),
        ).operation
        body = ir.Block.create_at_start(repeat.regions[0], [hidden.type])
        with ir.InsertionPoint(body):
            carried: ir.Value = body.arguments[0]
            for offset, kind in enumerate(run.pattern):
                segment = self.graph.layers[kind]
                assert segment.live_in is not None and segment.live_out is not None
                inner = {**outer, segment.live_in: carried}
                self._emit(segment, inner, layer=(kind, offset))
                carried = inner[segment.live_out]
            if carried.type != hidden.type:
                raise ModelError(
                    f"layers of model type {self.traced.config['model_type']!r} give another element type than they take",
                    where=self.traced.layers_path,
                    expected=dtype_of(hidden),
                    got=dtype_of(carried),
                    fix="compile with --dtype f32",
                )
            dialect.Yield([carried])
        return repeat.results[0]

    def _emit(self, segment: Segment, values: Environment, layer: tuple[int, int] | None) -> None:
        attentions = 0
        for node in segment.nodes:
            if target_name(node) == "tokenspeed.attention.default":
                self._emit_attention(node, values, layer, attentions)
                attentions += 1
                continue
            if target_name(node) == "tokenspeed.recurrence.default":
                self._emit_recurrence(node, values, layer)
                continue
            call, output = result_of(node)
            found = node.meta.get("val")
            if isinstance(found, (tuple, list, int, torch.SymInt)):
                continue  # several results are emitted one by one, where they are used; numbers are arguments
            operands: list[ir.Value] = []
            arguments: dict[str, Any] = {
                "args": [self._argument(item, values, operands, layer) for item in call.args],
                "kwargs": {
                    name: self._argument(item, values, operands, layer)
                    for name, item in call.kwargs.items()
                    if name not in {"device", "layout", "pin_memory", "memory_format"}
                },
            }
            if output is not None:
                arguments["result"] = output
            text = json.dumps(arguments, sort_keys=True)
            if not isinstance(found, torch.Tensor):
                raise ModelError(
                    f"model type {self.traced.config['model_type']!r} uses an operation that is not recognised yet",
                    where=self._label(node, layer) or "the traced model",
                    expected="operations that give tensors",
                    got=target_name(call),
                    fix="choose a model of one of the families in docs/models.md",
                )
            op = dialect.aten(self._type(node), operands, _SAME.get(target_name(call), target_name(call)), text)
            other = [str(size) for size in found.shape if self._is_open(size) and not self._is_tokens(size)]
            if other:
                op.attributes["other_sizes"] = modules.text(", ".join(other))  # the type only says that they are dynamic
            modules.set_label(op, self._label(node, layer))
            values[node] = op.results[0]

    def _type(self, node: Node) -> ir.RankedTensorType:
        return _type_of(node)

    def _label(self, node: Node, layer: tuple[int, int] | None) -> str:
        return self._templated(module_path(node), layer)

    def _emit_recurrence(self, node: Node, values: Environment, layer: tuple[int, int] | None) -> None:
        """The mixer's step: what needs no state before and behind the recurrence, over all rows, and the rest as its body."""
        if layer is None:
            raise ModelError("a recurrence outside of the layers is not supported", where=module_path(node))
        given: Any = node.args[0]
        rows = [self._value(source, values, layer) for source in given]
        inner = _StepImporter(self.traced, self.traced.mixers[int(node.args[2])])  # pyright: ignore[reportArgumentType]
        values[node] = inner.emit(rows, _type_of(node), layer, self._label(node, layer))

    def _emit_attention(self, node: Node, values: Environment, layer: tuple[int, int] | None, number: int) -> None:
        """Attention `number` of its layer. Each has a cache of its own: those of layers' first attentions are called as the
        layers, then come those of their second ones, and so on. Where layers are not folded, attentions are counted."""
        if layer is None and self.traced.layers_path:
            raise ModelError("attention outside of the layers is not supported", where=module_path(node))
        cache = str(number) if layer is None else shift("{i}", layer[1] + number * len(self.traced.kinds))
        *tensors, scale, window, softcap, _layer = node.args
        operands = [self._value(source, values, layer) for source in tensors if isinstance(source, Node)]
        arguments = {"args": [scale, window, softcap, cache], "kwargs": {}}
        op = dialect.aten(_type_of(node), operands, target_name(node), json.dumps(arguments))
        modules.set_label(op, self._templated(module_path(node), layer))
        values[node] = op.results[0]

    def _argument(self, item: Any, values: Environment, operands: list[ir.Value], layer: tuple[int, int] | None) -> Any:
        if isinstance(item, Node):
            node = self.graph.resolve(item)
            if not isinstance(node.meta.get("val"), torch.Tensor):
                return self._number(node.meta.get("val"))
            number = self._number_of(node)
            if number is not None:
                return number
            operands.append(self._value(node, values, layer))
            return {"operand": len(operands) - 1}
        if isinstance(item, Sequence) and not isinstance(item, str):
            return [self._argument(part, values, operands, layer) for part in item]
        if isinstance(item, Mapping):
            raise ModelError("an operation takes a mapping as argument", got=repr(item))
        if isinstance(item, torch.dtype):
            return {"dtype": _DTYPE_NAMES[item]}
        if isinstance(item, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            return self._number(item)
        return self._plain(item)

    def _plain(self, item: Any) -> Any:
        return item

    def _is_open(self, size: Any) -> bool:
        """Whether a size is not a number of the model."""
        return not isinstance(size, int)

    def _number(self, value: Any) -> Any:
        """A number of the trace: a constant, the number of tokens, or an expression that is not taken for it."""
        if isinstance(value, (bool, int, float)):
            return value
        return {"symbol": "tokens" if self._is_tokens(value) else str(value)}

    def _is_tokens(self, value: Any) -> bool:
        return isinstance(value, torch.SymInt) and value.node.expr == self.tokens.node.expr

    def _number_of(self, node: Node) -> float | None:
        """The value of a buffer that is one number, such as the factor of scaled embeddings."""
        _, target = self.targets.get(node.name, (None, ""))
        constant = self.traced.constants.get(target)
        return float(constant) if constant is not None and constant.ndim == 0 else None

    def _value(self, node: Node, values: Environment, layer: tuple[int, int] | None) -> ir.Value:
        node = self.graph.resolve(node)
        if node in values:
            return values[node]
        return self._parameter(node, layer)

    def _parameter(self, node: Node, layer: tuple[int, int] | None) -> ir.Value:
        kind, target = self.targets[node.name]
        if kind == InputKind.BUFFER and target in self.traced.constants:
            return dialect.Constant(_type_of(node), modules.text(target)).res
        if kind == InputKind.CONSTANT_TENSOR:
            raise ModelError(
                f"model type {self.traced.config['model_type']!r} makes a constant whose value a trace does not keep",
                where=self._templated(target, layer),
                expected="weights, buffers, and constants that are operations",
                got=f"a tensor of {list(value_of(node).shape)}",
                fix="choose a model of one of the families in docs/models.md",
            )
        if node.name in self._unsaved():
            raise ModelError(
                f"model type {self.traced.config['model_type']!r} has a buffer that no checkpoint holds and nothing fills",
                where=target,
                expected="buffers that transformers computes when it loads a model",
                got="whatever was in memory",
                fix="choose one of the model types that docs/models.md lists",
            )
        name = self.traced.shared.get(target) or self._templated(self.traced.ties.get(target, target), layer)
        weight = dialect.Weight(_type_of(node), modules.text(name), ir.ArrayAttr.get([modules.text(name)]))
        return weight.res

    def _unsaved(self) -> set[str]:
        """Placeholders of buffers that are not saved with the parameters."""
        return {spec.arg.name for spec in self.exported.graph_signature.input_specs if spec.persistent is False}

    def _templated(self, name: str, layer: tuple[int, int] | None) -> str:
        """A name inside a kept layer with the layer's index as a template."""
        if layer is None:
            return name
        kind, offset = layer
        for path in (self.traced.layers_path, *self.traced.beside):
            name = name.replace(f"{path}.{kind}", f"{path}.{shift('{i}', offset)}", 1)
        return name


class _StepImporter(_Importer):
    """Imports the step of one mixer into the layer that has it."""

    def __init__(self, traced: TracedModel, mixer: Mixer) -> None:
        self.traced, self.mixer, self.exported = traced, mixer, mixer.step
        self.step = split_step(mixer)
        self.graph = self.step.graph
        found = placeholder_targets(mixer.step)
        self.targets = {name: (kind, f"{mixer.path}.{target}") for name, (kind, target) in found.items()}

    def emit(self, rows: list[ir.Value], kind: ir.Type, layer: tuple[int, int], label: str) -> ir.Value:
        """The result as the model has it, [1, tokens, width], from its `rows` [1, tokens, ...]."""
        step = self.step
        values: Environment = {node: self._turned(value, self._type(node)) for node, value in zip(step.rows, rows, strict=True)}
        self._emit(Segment(step.before), values, layer)
        operands = [self._value(node, values, layer) for node in step.operands]
        of_rows = sum(is_of_rows(node) for node in step.operands)
        operation = dialect.recurrence(self._type(step.result), operands, of_rows, shift("{i}", layer[1]))
        modules.set_label(operation, label)
        arguments = [*step.operands, *step.states]
        body = ir.Block.create_at_start(operation.regions[0], [self._type(node) for node in arguments])
        inner: Environment = dict(zip(arguments, body.arguments, strict=True))
        with ir.InsertionPoint(body):
            self._emit(Segment(step.inside), inner, layer)
            dialect.step(inner[step.result], [inner[node] for node in step.new_states])
        values[step.result] = operation.results[0]
        self._emit(Segment(step.after), values, layer)
        return self._turned(values[step.out], kind)

    def _type(self, node: Node) -> ir.RankedTensorType:
        return _type_of(node, STEP_ROWS)

    def _plain(self, item: Any) -> Any:
        if isinstance(item, int) and not isinstance(item, bool) and item and item % STEP_ROWS == 0:
            return {"symbol": "tokens" if item == STEP_ROWS else f"{item // STEP_ROWS}*rows"}
        return item

    def _is_open(self, size: Any) -> bool:
        return size % STEP_ROWS == 0

    def _is_tokens(self, value: Any) -> bool:
        return value == STEP_ROWS

    def _turned(self, value: ir.Value, kind: ir.Type) -> ir.Value:
        """[1, tokens, ...] as [rows, 1, ...], or back."""
        arguments = json.dumps({"args": [{"operand": 0}, 0, 1], "kwargs": {}})
        return dialect.aten(kind, [value], "aten.transpose.int", arguments).results[0]

    def _label(self, node: Node, layer: tuple[int, int] | None) -> str:
        inside = module_path(node)
        return self._templated(f"{self.mixer.path}.{inside}" if inside else self.mixer.path, layer)
