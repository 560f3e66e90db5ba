"""Modules of the dialect: contexts, parsing, printing, building, walking, attributes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from . import dialect
from .attributes import float_attribute as float_attribute
from .attributes import int_attribute as int_attribute
from .attributes import text_attribute
from .attributes import text_list as text_list
from .mlir import func, ir, passmanager

SYMBOL = "step"


class IrError(ValueError):
    """Text that is not a valid module of the dialect; the message carries MLIR's diagnostics with line and column."""


@contextmanager
def context() -> Iterator[ir.Context]:
    """A fresh MLIR context with the dialect registered; modules live and die with it."""
    with ir.Context() as mlir_context, ir.Location.unknown():
        dialect.load()
        yield mlir_context


def parse(text: str) -> ir.Module:
    """Parse and verify a module.

    Raises IrError with the diagnostics.
    """
    try:
        module = ir.Module.parse(text)
    except ir.MLIRError as error:
        raise IrError(str(error)) from error
    verify(module)
    return module


def verify(module: ir.Module) -> None:
    """Run MLIR's and the dialect's verifiers.

    Raises IrError with the diagnostics.
    """
    problems: list[str] = []

    def note(found: ir.Diagnostic) -> bool:
        problems.append(f"{found.location}: {found.message}")
        return True

    handler = module.context.attach_diagnostic_handler(note)
    try:
        sound = module.operation.verify()
    except ir.MLIRError as error:
        problems.append(str(error))
        sound = False
    finally:
        handler.detach()
    if not sound:
        raise IrError("\n".join(problems) or "the module does not verify")


def new_step() -> tuple[ir.Module, ir.Block]:
    """An empty module with one function `step`, and the function's block to build in."""
    module = ir.Module.create()
    with ir.InsertionPoint(module.body):
        function = func.FuncOp(SYMBOL, ([], []))
        block = function.add_entry_block()
    return module, block


def step_block(module: ir.Module) -> ir.Block:
    """The block of the function `step`."""
    for operation in module.body.operations:
        if operation.operation.name == "func.func":
            return operation.operation.regions[0].blocks[0]
    raise IrError("the module has no function")


def finish(block: ir.Block, results: Sequence[ir.Value]) -> None:
    """End the step function with its results and give it the type that follows."""
    with ir.InsertionPoint(block):
        func.ReturnOp(list(results))
    retype(block)


def retype(block: ir.Block) -> None:
    """Make the function's type agree with what its block returns (placements may have changed it)."""
    terminator = list(block.operations)[-1].operation
    types = [value.type for value in terminator.operands]
    function = block.owner.operation
    function.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get([], types))


def body_of(repeat: ir.Operation) -> ir.Block:
    return repeat.regions[0].blocks[0]


def walk(block: ir.Block) -> Iterator[ir.Operation]:
    """All operations in program order, a repeat before its body. A list is taken per block, so the caller may erase.

    The body of a recurrence is left out: it says what that one operation does.
    """
    for view in list(block.operations):
        operation = view.operation
        yield operation
        for region in () if operation.name == "ts.recurrence" else operation.regions:
            for inner in region.blocks:
                yield from walk(inner)


def maker_of(value: ir.Value) -> ir.Operation | None:
    """The operation whose result a value is; None for an argument of a block."""
    owner = value.owner
    if isinstance(owner, ir.Block):
        return None
    return owner if isinstance(owner, ir.Operation) else owner.operation


def made_by(value: ir.Value) -> ir.Operation:
    """The operation whose result a value is, of one that is no argument."""
    maker = maker_of(value)
    assert maker is not None, f"{value} is an argument of a block"
    return maker


def readers_of(value: ir.Value) -> list[tuple[ir.Operation, int]]:
    """Operations that read a value, with the operand's position."""
    uses = value.uses
    return [(use.owner if isinstance(use.owner, ir.Operation) else use.owner.operation, use.operand_number) for use in uses]


def label_of(operation: ir.Operation) -> str:
    """The module path an operation came from, "" when unknown."""
    return text_attribute(operation, "label") if "label" in operation.attributes else ""


def set_label(operation: ir.Operation, label: str) -> None:
    operation.attributes["label"] = ir.StringAttr.get(label)


def text(value: str) -> ir.StringAttr:
    return ir.StringAttr.get(value)


def integer(value: int) -> ir.IntegerAttr:
    return ir.IntegerAttr.get(ir.IntegerType.get_signless(64), value)


def flag(value: bool) -> ir.IntegerAttr:
    return ir.IntegerAttr.get(ir.IntegerType.get_signless(1), int(value))


def number(value: float) -> ir.FloatAttr:
    return ir.FloatAttr.get(ir.F64Type.get(), value)


_KEPT = {"ts.repeat", "ts.yield", "ts.attention", "ts.latent_attention", "ts.recurrence", "ts.rope_kv_write", "func.return"}
_KEPT |= {"ts.send", "ts.receive"}


def erase_unused(block: ir.Block) -> None:
    """Erase pure operations whose results nobody uses, last first."""
    for operation in reversed(list(walk(block))):
        if operation.name not in _KEPT and not any(list(result.uses) for result in operation.results):
            operation.erase()


def merge_equal(module: ir.Module) -> None:
    """MLIR's common-subexpression elimination: equal pure operations become one."""
    passmanager.PassManager.parse("builtin.module(cse)").run(module.operation)
