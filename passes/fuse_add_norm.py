"""fuse: a residual addition and the norm that reads it become one operation."""

from __future__ import annotations

from ..ir import dialect
from ..ir import module as modules
from ..ir.mlir import ir

_FLAGS = ("cast_before_weight", "one_plus_weight")


def fuse_add_norm(module: ir.Module) -> ir.Module:
    """rms_norm(add(x, residual)) -> add_rms_norm; in place."""
    for operation in list(modules.walk(modules.step_block(module))):
        if operation.name != "ts.rms_norm":
            continue
        owner = operation.operands[0].owner
        add = owner if isinstance(owner, ir.Operation) else getattr(owner, "operation", None)
        # a norm in a repeat reads a weight per layer, so it cannot move out to an addition before the repeat
        if add is not None and add.name == "ts.add" and add.parent == operation.parent:
            _fuse(add, operation)
    modules.erase_unused(modules.step_block(module))
    return module


def _fuse(add: ir.Operation, norm: ir.Operation) -> None:
    residual, x = add.operands  # a decoder writes hidden = residual + block(hidden)
    weight = norm.operands[1].owner
    assert not isinstance(weight, ir.Block)
    with ir.InsertionPoint(add):
        moved = dialect.Weight(norm.operands[1].type, weight.attributes["sym"], weight.attributes["parameters"]).res
        # flags are built anew: a false BoolAttr handed on is taken for a missing one
        flags = [modules.flag(bool(modules.int_attribute(norm, name))) for name in _FLAGS]
        types = add.results[0].type, norm.results[0].type
        fused = dialect.AddRmsNorm(*types, x, residual, moved, norm.attributes["eps"], *flags).operation
    modules.set_label(fused, modules.label_of(norm))
    add.results[0].replace_all_uses_with(fused.results[0])
    norm.results[0].replace_all_uses_with(fused.results[1])
    norm.erase()
    add.erase()
