"""Attention to keys that an indexer selects (DeepSeek sparse attention): to all, while it selects no fewer than there are.

The selection is left out of the trace: it mixes tokens. Contexts in which it would leave keys out are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...plans.errors import ModelError


def leave_out_selection(model: nn.Module, context: int) -> None:
    """Make attention that an indexer serves plain attention.

    Raises ModelError if a sequence of `context` tokens has more keys than are selected.
    """
    served = [(module, module.indexer) for module in model.modules() if hasattr(module, "indexer")]
    for _, indexer in served:
        if indexer is not None:
            _require_all_selected(indexer, context)
    if any(hasattr(indexer, "index_topk") for _, indexer in served):
        for module, indexer in served:
            _replace(module, indexer)


def _require_all_selected(indexer: Any, context: int) -> None:
    selected = getattr(indexer, "index_topk", None)
    if selected is None and hasattr(indexer, "topk_blocks") and hasattr(indexer, "block_size"):
        selected = indexer.topk_blocks * indexer.block_size
    if selected is None:
        raise ModelError(
            "attention to selected keys is not supported: how many keys are selected is not known",
            where=type(indexer).__name__,
        )
    if context > selected:
        raise ModelError(
            "attention to selected keys is supported only for contexts in which all are selected",
            where="--max-context",
            expected=f"at most {selected} tokens, the keys that {type(indexer).__name__} selects",
            got=str(context),
            fix=f"compile with --max-context {selected}",
        )


def _replace(module: nn.Module, indexer: Any) -> None:
    """The module's own code cuts up a mask and hands the selection on: it gets a mask to cut up, and a selection of nothing."""
    own: Callable[..., Any] = module.forward

    def forward(*given: Any, **named: Any) -> Any:
        if named.get("attention_mask") is None and len(given) < 3:
            named["attention_mask"] = torch.zeros(1, 1, 1, 1, device="meta")
        if indexer is None:
            named["prev_topk_indices"] = torch.zeros(1, dtype=torch.int32, device="meta")
        return own(*given, **named)

    vars(module)["forward"] = forward
    if indexer is not None:
        vars(indexer)["forward"] = _nothing_selected


def _nothing_selected(*_given: Any, **_named: Any) -> Tensor:
    return torch.zeros(1, dtype=torch.int32, device="meta")
