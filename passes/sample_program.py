"""The sample program: logits to tokens over the slot buffers of the sampling ABI (plans/sampling.py)."""

from __future__ import annotations

from collections.abc import Sequence

from ..plans.program import DTYPE_BYTES, NATIVE, Bucket, Buffer, Call, DType, Program
from ..plans.sampling import CHOSEN_LOGPROBS, TOKENS, TOP_LOGPROB_VALUES, TOP_LOGPROBS, TOP_TOKENS, slot_buffers
from ..targets.triton.sampling import SAMPLING
from .lower_device import DeviceCalls

_ALIGNMENT = 64


def build_sample_program(
    vocabulary: int, slots: int, max_logit_rows: int, dtype: DType, native: bool = False
) -> tuple[Program, tuple[Buffer, ...]]:
    """The program of role "sample", and the slot buffers it works on.

    It shares the arena with the step programs and finds `logits`[logit_rows, vocabulary] of `dtype` where they left it:
    every step program must place its `logits` at offset 0 too. Its own buffers come after that. `native`: it calls the plan's
    own kernels.
    """
    buffers = (
        Buffer("logits", dtype, ("logit_rows", vocabulary)),
        Buffer("adjusted", "f32", ("logit_rows", vocabulary)),
        Buffer(TOKENS, "i32", ("logit_rows",)),
        Buffer(CHOSEN_LOGPROBS, "f32", ("logit_rows",)),
        Buffer(TOP_TOKENS, "i32", ("logit_rows", TOP_LOGPROBS)),
        Buffer(TOP_LOGPROB_VALUES, "f32", ("logit_rows", TOP_LOGPROBS)),
    )
    program = Program("sample", 0, buffers, (), _body(NATIVE if native else ""), (_bucket(buffers, max_logit_rows),))
    return program, slot_buffers(vocabulary, slots)


def build_device_sample_program(device: DeviceCalls, vocabulary: int, dtype: DType, rows: Sequence[int]) -> Program:
    """The same for an accelerator, with a bucket for each of `rows`: they are captured as those of the step program are."""
    (program, _) = build_sample_program(vocabulary, device.setting.max_sequences, max(rows), dtype)
    buffers = list(program.buffers)

    def room(stem: str, wanted: Buffer) -> str:
        buffers.append(Buffer(stem, wanted.dtype, wanted.shape))
        return stem

    body: list[Call] = []
    for call in program.calls:
        operation = SAMPLING[call.function](vocabulary, dtype, device.setting)
        body += device.calls(operation, (*call.inputs, *call.outputs), call.label, room)
    buckets = tuple(_bucket(tuple(buffers), count) for count in rows)
    return Program("sample", 0, tuple(buffers), (), tuple(body), buckets)


def _body(prefix: str) -> tuple[Call, ...]:
    penalties = ("repetition_penalty", "presence_penalty", "frequency_penalty", "prompt_seen", "output_counts")
    bias = ("bias_tokens", "bias_values")
    minimum = ("min_tokens", "output_position", "end_tokens")
    drawing = ("temperature", "top_k", "top_p", "min_p", "seed", "output_position")
    rows = ("logit_slots", "features")
    logprobs = (CHOSEN_LOGPROBS, TOP_TOKENS, TOP_LOGPROB_VALUES)
    return (
        Call(f"{prefix}adjust_logits", ("logits", *rows, *penalties, *bias, *minimum), ("adjusted",), {}, "sample.adjust"),
        Call(f"{prefix}draw_tokens", ("logits", "adjusted", *rows, *drawing), (TOKENS,), {}, "sample.draw"),
        Call(f"{prefix}token_logprobs", ("logits", TOKENS, *rows), logprobs, {}, "sample.logprobs"),
        Call(f"{prefix}record_tokens", (TOKENS, *rows), ("last_tokens", "output_counts", "output_position"), {}, "sample.record"),
    )


def _bucket(buffers: tuple[Buffer, ...], logit_rows: int) -> Bucket:
    """One bucket is enough: nothing here depends on it but the offsets, laid out one after another."""
    offsets, position = [], 0
    for buffer in buffers:
        offsets.append(position)
        elements = 1
        for extent in buffer.shape:
            elements *= extent if isinstance(extent, int) else logit_rows
        position += -(-elements * DTYPE_BYTES[buffer.dtype] // _ALIGNMENT) * _ALIGNMENT
    return Bucket(logit_rows, logit_rows, tuple(offsets), position)
