"""The sample program is sound on its own: every operand resolves, buffers do not overlap, logits come first."""

from __future__ import annotations

from math import prod

from tokenspeed.passes.sample_program import build_sample_program
from tokenspeed.plans.program import DTYPE_BYTES, Call
from tokenspeed.plans.sampling import slot_buffers


def test_operands_resolve_and_slot_buffers_are_of_the_sampling_abi() -> None:
    program, slots = build_sample_program(1000, 8, 4, "bf16")
    assert slots == slot_buffers(1000, 8)
    known = {buffer.name for buffer in (*program.buffers, *slots)} | {"logit_slots"}
    for call in program.body:
        assert isinstance(call, Call)
        assert {*call.inputs, *call.outputs} <= known and call.outputs
        assert not set(call.outputs) & {"logits", "logit_slots"}


def test_buffers_lie_one_after_another_with_logits_first() -> None:
    program, _ = build_sample_program(1000, 8, 4, "bf16")
    (bucket,) = program.buckets
    assert (bucket.rows, bucket.logit_rows) == (4, 4)
    assert program.buffers[0].name == "logits" and bucket.offsets[0] == 0
    end = 0
    for buffer, offset in zip(program.buffers, bucket.offsets, strict=True):
        assert offset % 64 == 0 and offset >= end
        end = offset + prod(extent if isinstance(extent, int) else 4 for extent in buffer.shape) * DTYPE_BYTES[buffer.dtype]
    assert end <= bucket.arena_bytes
