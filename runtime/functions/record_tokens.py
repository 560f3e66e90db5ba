"""Writing sampled tokens back into their slots."""

from __future__ import annotations

import numpy as np
import torch

from ...plans.sampling import PENALTIES
from .adjust_logits import check_slots
from .base import Launch, Operands
from .sampling_rows import requested


def record_tokens(operands: Operands) -> Launch:
    """(tokens[L] i32, logit_slots[L], features) -> last_tokens[S], output_counts[S, V], output_position[S], updated in place.

    Padded rows (slot -1) and failed rows (token -1) record nothing. `output_counts` is kept for slots with penalties.
    """
    (tokens, logit_slots, features), (last_tokens, output_counts, output_position) = operands.take(3, 3)
    operands.typed(torch.int32, tokens, last_tokens, output_counts, output_position)
    check_slots(operands, tokens, logit_slots, [features, last_tokens, output_counts, output_position])
    operands.require(output_counts.ndim == 2, "output_counts[S, V]")
    wanted = requested(operands.context, logit_slots, features)
    sampled, last, position = tokens.numpy(), last_tokens.numpy(), output_position.numpy()
    counts, context = output_counts.numpy(), operands.context

    def run() -> None:
        wanted.refresh(context.step)
        slots, taken = wanted.slots, sampled
        real = (slots >= 0) & (taken >= 0)
        if not real.all():
            slots, taken = slots[real], taken[real]
        last[slots] = taken
        # a slot has one logit row a step, so plain indexed addition does not lose any
        position[slots] += 1
        if wanted.any & PENALTIES:
            rows = wanted.rows(PENALTIES)
            rows = rows[sampled[rows] >= 0]
            np.add.at(counts, (wanted.slots[rows], sampled[rows]), 1)

    return run
