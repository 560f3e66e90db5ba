"""Exporting a model for any number of tokens, or for as many as its own code allows.

Tables of positions or masks that a model cuts to the length of its text bound how long that text may be. The bound is found,
and goes with the trace: what is compiled for longer contexts is refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import UserError
from torch.export import Dim, ExportedProgram

from ...plans.errors import ModelError

FEWEST, MOST = 2, 65536
"""Tokens of a trace; where no bound is found it holds for any number."""


def export_over_tokens(model: torch.nn.Module, inputs: tuple[Tensor, ...], context: int = 0) -> tuple[ExportedProgram, int]:
    """The exported model, and the most tokens that it holds for (0: any number).

    `inputs` are [1, tokens]. Where no bound is found and yet there is one, the trace is made for `context` tokens.
    Raises whatever torch.export or the model's code does.
    """
    try:
        return _export(model, inputs, Dim("tokens", min=FEWEST, max=MOST)), 0
    except UserError:
        longest = _bound(model, inputs)
        if longest is None and context <= FEWEST:
            raise
    if longest is None:
        return _export(model, inputs, Dim("tokens", min=FEWEST, max=context)), context
    # A branch for a text exactly as long as the table is left out: the table is then cut nowhere, which is no other result.
    return _export(model, inputs, Dim("tokens", min=FEWEST, max=longest - 1)), longest


def require_within(longest: int, context: int, model_type: str) -> None:
    """Raises ModelError if a sequence of `context` tokens is longer than a trace holds for (0: any)."""
    if longest and context > longest:
        raise ModelError(
            f"a {model_type} model of this configuration takes no more than {longest} tokens",
            where="--max-context",
            expected=f"at most {longest} tokens, the length of a table in the model",
            got=str(context),
            fix=f"compile with --max-context {longest}",
        )


def _export(model: torch.nn.Module, inputs: tuple[Tensor, ...], tokens: Any) -> ExportedProgram:
    return torch.export.export(model, inputs, dynamic_shapes=tuple({1: tokens} for _ in inputs), strict=False)


def _bound(model: torch.nn.Module, inputs: tuple[Tensor, ...]) -> int | None:
    """The upper end of the range that torch.export infers for the number of tokens, None if it infers none."""
    exported = _export(model, inputs, Dim.AUTO(min=FEWEST, max=MOST))  # pyright: ignore[reportCallIssue]
    given = exported.graph_signature.user_inputs
    first = next(node for node in exported.graph.nodes if node.op == "placeholder" and node.name in given)
    size = first.meta["val"].shape[1]
    if isinstance(size, int):
        return None
    found = exported.range_constraints.get(size.node.expr)
    return int(found.upper) if found is not None and FEWEST < found.upper < MOST else None
