"""A launched step: what `complete` needs to know of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .sequence import Sequence


@dataclass(slots=True)
class Flight:
    """Rows of a launched step by sequence, decode first.

    `computed`[sequence] is the tokens in its KV once the step is done. `samples` indexes the sequences that sample, in the
    order of the step's logit rows; `departures` is the slot table's at the launch. `filling` indexes the sequences that may have
    a full unit with it, and `may_end` says whether any may reach its limit. `chunks` of prompts have `chunk_rows` rows.
    `preempted` holds, by slot, those preempted since the launch: their token still counts.
    """

    step_id: int
    slots: NDArray[np.intp]
    bindings: NDArray[np.int64]
    computed: NDArray[np.int32]
    samples: NDArray[np.intp]
    sampled_ids: tuple[str, ...]
    departures: int
    filling: NDArray[np.intp]
    may_end: bool
    chunks: int = 0
    chunk_rows: int = 0
    preempted: dict[int, Sequence] = field(default_factory=dict)
