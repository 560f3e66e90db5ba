"""raise: `ts.aten` -> `ts`, by unification. What no rule recognises is named in one clear error."""

from __future__ import annotations

from ..ir import dialect
from ..ir import module as modules
from ..ir.mlir import ir
from ..ir.types import tensor
from ..plans.errors import ModelError
from .raising.form import Form
from .raising.pattern import AtenOp
from .raising.raised import Raised, culprit
from .raising.rules import RULES


def raise_aten(source: ir.Module, model_type: str) -> ir.Module:
    """A new module in which every ATen operation has become a `ts` operation on flat rows.

    Raises ModelError naming the first operation that no rule takes.
    """
    raised = _Driver(model_type).run(source)
    modules.verify(raised)
    return raised


class _Driver:
    def __init__(self, model_type: str) -> None:
        self.model_type = model_type
        self.done: dict[ir.Value, Raised] = {}
        self.weights: dict[tuple[int, str], ir.Value] = {}
        self.depth = 0

    def run(self, source: ir.Module) -> ir.Module:
        module, block = modules.new_step()
        with ir.InsertionPoint(block):
            returned = self._raise_block(modules.step_block(source))
            logits = self._only_logit_rows(returned[0])
            modules.finish(block, [logits])
        modules.erase_unused(block)
        modules.merge_equal(module)
        return module

    def raised(self, value: ir.Value) -> Raised | None:
        return self.done.get(value)

    def weight(self, value: ir.Value) -> ir.Value | None:
        found = self.done.get(value)
        return found.value if found is not None and found.form is Form.WEIGHT else None

    constant = weight

    def _raise_block(self, block: ir.Block) -> list[ir.Value]:
        """Raise all operations of a block in order; gives back the raised operands of its terminator."""
        for view in block.operations:
            operation = view.operation
            if operation.name == "ts.aten":
                self._raise_operation(AtenOp(operation))
            elif operation.name == "ts.repeat":
                self._raise_repeat(operation)
            elif operation.name in {"ts.yield", "func.return"}:
                return [self._needed(value) for value in operation.operands]
            else:
                self._copy_leaf(operation)
        return []

    def _raise_operation(self, root: AtenOp) -> None:
        for rule in RULES:
            found = rule(root, self)
            if found is not None:
                owner = found.value.owner
                operation = owner if isinstance(owner, ir.Operation) else getattr(owner, "operation", None)
                if operation is not None and not modules.label_of(operation) and operation.name != "ts.weight":
                    modules.set_label(operation, modules.label_of(root.operation))
                self.done[root.result] = found
                return

    def _raise_repeat(self, source: ir.Operation) -> None:
        carried = [self._needed(value) for value in source.operands]
        types = [value.type for value in carried]
        attributes = [source.attributes[name] for name in ("first", "count", "stride")]
        repeat = dialect.Repeat(types, carried, *attributes).operation
        body = ir.Block.create_at_start(repeat.regions[0], types)
        inner = modules.body_of(source)
        for before, after in zip(inner.arguments, body.arguments, strict=True):
            self.done[before] = Raised(after, Form.ROWS)
        with ir.InsertionPoint(body):
            dialect.Yield(self._raise_block(inner))
        for before, after in zip(source.results, repeat.results, strict=True):
            self.done[before] = Raised(after, Form.ROWS)

    def _copy_leaf(self, operation: ir.Operation) -> None:
        """Weights and constants as they are; step inputs without their batch dimension of one."""
        sym = modules.text(modules.text_attribute(operation, "sym"))
        result = operation.results[0]
        if operation.name == "ts.input":
            self.done[result] = Raised(dialect.Input(tensor("i32", [None]), sym).res, Form.IDS)
        elif operation.name == "ts.constant":
            self.done[result] = Raised(dialect.Constant(result.type, sym).res, Form.WEIGHT)
        else:
            weight = dialect.Weight(result.type, sym, operation.attributes["parameters"])
            self.done[result] = Raised(weight.res, Form.WEIGHT)

    def _needed(self, value: ir.Value) -> ir.Value:
        found = self.done.get(value)
        if found is not None and found.form is Form.ROWS:
            return found.value
        stuck = culprit(value, self)
        where = modules.label_of(stuck.operation) if stuck else ""
        raise ModelError(
            f"model type {self.model_type!r} uses an operation that is not recognised yet",
            where=where or "the traced model",
            expected="the operations of llama, qwen2, qwen3 or mistral",
            got=stuck.target if stuck else str(value),
            fix="choose a model of one of the families in docs/models.md",
        )

    def _only_logit_rows(self, logits: ir.Value) -> ir.Value:
        """Compute the head on the rows that need logits only: gather rows before the last linear."""
        owner = logits.owner
        head = owner if isinstance(owner, ir.Operation) else getattr(owner, "operation", None)
        rows = dialect.Input(tensor("i32", [None]), modules.text("logit_rows")).res
        x = head.operands[0] if head is not None and head.name == "ts.linear" else logits
        gathered = dialect.GatherRows(x.type, x, rows).res
        if x == logits or head is None:
            return gathered
        linear = dialect.Linear(logits.type, gathered, head.operands[1], list(head.operands)[2:]).operation
        modules.set_label(linear, modules.label_of(head))
        return linear.results[0]
