"""raise: `ts.aten` -> `ts` on flat rows, by unification. What no rule recognises stays `ts.aten` if it works row by row."""

from __future__ import annotations

from ..ir import dialect
from ..ir import module as modules
from ..ir.mlir import ir
from ..ir.types import tensor
from ..plans.errors import ModelError
from .raising.fallback import fall_back
from .raising.form import Form
from .raising.pattern import AtenOp
from .raising.raised import Raised
from .raising.recurrence import raise_recurrence
from .raising.rules import RULES
from .rowwise.call import MixesTokens


def raise_aten(source: ir.Module, model_type: str) -> ir.Module:
    """A new module on flat rows: `ts` operations where a rule recognises them, `ts.aten` with layouts elsewhere.

    Raises ModelError naming the first operation that no rule takes and that does not work row by row.
    """
    raised = _Driver(model_type).run(source)
    modules.verify(raised)
    return raised


class _Driver:
    def __init__(self, model_type: str) -> None:
        self.model_type = model_type
        self.done: dict[ir.Value, Raised] = {}
        self.refused: dict[ir.Value, tuple[AtenOp, str]] = {}
        self.positions: ir.Value | None = None
        self.weights: dict[tuple[int, str], ir.Value] = {}
        self.depth = 0

    def run(self, source: ir.Module) -> ir.Module:
        module, block = modules.new_step()
        self.block = block
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
            elif operation.name == "ts.recurrence":
                self._raise_recurrence(operation)
            elif operation.name in {"ts.yield", "func.return"}:
                return [self._needed(value).value for value in operation.operands]
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
        self._fall_back(root)

    def _fall_back(self, root: AtenOp) -> None:
        """Keep the operation as it is, or note why it cannot be kept: that matters only if its result is needed."""
        refused = next((self.refused[value] for value in root.operation.operands if value in self.refused), None)
        if refused is None:
            try:
                self.done[root.result] = fall_back(root, self, self._positions())
                return
            except MixesTokens as error:
                refused = root, str(error)
        self.refused[root.result] = refused

    def _positions(self) -> ir.Value:
        if self.positions is None:
            with ir.InsertionPoint.at_block_begin(self.block):
                self.positions = dialect.Input(tensor("i32", [None]), modules.text("positions")).res
        return self.positions

    def _raise_repeat(self, source: ir.Operation) -> None:
        entering = [self._needed(value) for value in source.operands]
        carried = [found.value for found in entering]
        types = [value.type for value in carried]
        attributes = [source.attributes[name] for name in ("first", "count", "stride")]
        repeat = dialect.Repeat(types, carried, *attributes).operation
        body = ir.Block.create_at_start(repeat.regions[0], types)
        inner = modules.body_of(source)
        for before, after, found in zip(inner.arguments, body.arguments, entering, strict=True):
            self.done[before] = Raised(after, found.form)
        with ir.InsertionPoint(body):
            dialect.Yield(self._raise_block(inner))
        for before, after, found in zip(source.results, repeat.results, entering, strict=True):
            self.done[before] = Raised(after, found.form)

    def _raise_recurrence(self, source: ir.Operation) -> None:
        for value in list(source.operands)[: modules.int_attribute(source, "rows")]:
            self._needed(value)
        try:
            self.done[source.results[0]] = raise_recurrence(source, self)
        except MixesTokens as error:
            label = modules.label_of(source)
            raise self._refusal(label, str(error)) from None

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

    def _needed(self, value: ir.Value) -> Raised:
        found = self.done.get(value)
        if found is not None and found.form.axis is not None:
            return found
        root, reason = self.refused.get(value, (None, "a value that does not depend on tokens"))
        raise self._refusal(modules.label_of(root.operation) if root else "", reason)

    def _refusal(self, where: str, reason: str) -> ModelError:
        return ModelError(
            f"model type {self.model_type!r} computes something that cannot run on rows of packed sequences",
            where=where or "the traced model",
            expected="operations that work token by token, and attention through transformers' attention interface",
            got=reason,
            fix="choose one of the model types that docs/models.md lists",
        )

    def _only_logit_rows(self, logits: ir.Value) -> ir.Value:
        """Compute the head, and what is done to its logits, on the rows that need logits only: gather them before."""
        tail: list[ir.Operation] = []
        x = logits
        while (maker := modules.maker_of(x)) is not None and maker.name in _ON_EACH_ROW:
            tail.append(maker)
            x = maker.operands[0]
            if maker.name == "ts.linear":
                break
        else:
            tail, x = [], logits
        rows = dialect.Input(tensor("i32", [None]), modules.text("logit_rows")).res
        last: ir.Operation = dialect.GatherRows(x.type, x, rows).operation
        for operation in reversed(tail):
            moved = operation.clone()
            moved.operands[0] = last.results[0]
            last = moved
        return last.results[0]


_ON_EACH_ROW = {"ts.linear", "ts.scale", "ts.softcap", "ts.activation"}
