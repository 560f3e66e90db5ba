"""What templates of device functions are told of a plan's steps."""

from __future__ import annotations

from ..plans.program import DType
from ..plans.schema import Schedule
from ..targets.accelerator import Accelerator
from ..targets.triton.kernel import DeviceSetting
from .schedule import BucketSize

_LEAST_MIXED_ROWS = 64
_TILE = 128
"""Rows of a tile of products with many: sizes between powers of two are worth having where no tile is cut."""


def device_setting(
    accelerator: Accelerator, limits: Schedule, block_tokens: int, max_context: int, kv_dtype: DType | None = None
) -> DeviceSetting:
    """The setting of steps within `limits`, sequences of up to `max_context` tokens in blocks of `block_tokens`, keys and values
    kept as `kv_dtype` (None: the attention's own)."""
    return DeviceSetting(
        accelerator=accelerator,
        max_rows=limits.max_rows,
        max_decode_rows=limits.max_decode_rows,
        max_sequences=limits.max_sequences,
        block_tokens=block_tokens,
        blocks_per_sequence=-(-max_context // block_tokens),
        kv_dtype=kv_dtype,
    )


def decode_rows(limits: Schedule) -> tuple[int, ...]:
    """Rows of the decode buckets, which are captured as graphs: close together where steps are short, since padding costs."""
    rows, step = [1, 2, 4], 8
    while rows[-1] < limits.max_decode_rows:
        rows.append(rows[-1] * 2 if rows[-1] < step else rows[-1] + max(8, _power_of_two_below(rows[-1]) // 2))
    return (*(count for count in rows if count < limits.max_decode_rows), limits.max_decode_rows)


def device_bucket_sizes(limits: Schedule) -> tuple[BucketSize, ...]:
    """Decode buckets, in which every row wants its logits, and others for steps in which a sequence has several rows."""
    sizes = {(rows, rows) for rows in decode_rows(limits)}
    rows, mixed = _LEAST_MIXED_ROWS, {limits.max_rows}
    while rows < limits.max_rows:
        mixed |= {rows, *(size for size in (rows * 5 // 4, rows * 3 // 2) if size % _TILE == 0 and size < limits.max_rows)}
        rows *= 2
    sizes |= {(rows, min(limits.max_sequences, rows - 1)) for rows in mixed}
    return tuple(BucketSize(rows, logit_rows) for rows, logit_rows in sorted(sizes))


def _power_of_two_below(count: int) -> int:
    return 1 << (count.bit_length() - 1)
