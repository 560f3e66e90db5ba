"""Liveness and arena layout: nothing that is alive shares bytes, and nothing lies outside."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenspeed.passes.allocate import ALIGNMENT, Life, allocate, lives
from tokenspeed.passes.schedule import BucketSize
from tokenspeed.plans.program import DTYPE_BYTES, Bucket, Buffer, Call, Dimension, DType, Program, Repeat, View

from ..ir.modules import decoder
from .test_lower import lowered

SIZES = (BucketSize(1, 1), BucketSize(7, 3), BucketSize(64, 8))


def size_of(buffer: Buffer, bucket: Bucket) -> int:
    extents = {"rows": bucket.rows, "logit_rows": bucket.logit_rows}
    return prod(extents[item] if isinstance(item, str) else item for item in buffer.shape) * DTYPE_BYTES[buffer.dtype]


def check_layout(program: Program) -> None:
    """What any layout must keep, against lives found by running the program (not by the pass)."""
    overlapping = alive_together(program)
    for bucket in program.buckets:
        spans = {b.name: (at, at + size_of(b, bucket)) for b, at in zip(program.buffers, bucket.offsets, strict=True)}
        assert all(start % ALIGNMENT == 0 for start, _ in spans.values())
        assert spans["logits"][0] == 0
        assert max(stop for _, stop in spans.values()) <= bucket.arena_bytes
        assert bucket.arena_bytes <= sum(-(-(stop - start) // ALIGNMENT) * ALIGNMENT for start, stop in spans.values())
        for a, b in overlapping:
            assert spans[a][1] <= spans[b][0] or spans[b][1] <= spans[a][0], (a, b)


def alive_together(program: Program) -> set[tuple[str, str]]:
    """Pairs of buffers that hold a value still to be read at the same time: repeats unrolled, exact liveness backwards."""
    bases = {view.name: view.base for view in program.views}
    buffers = {buffer.name for buffer in program.buffers}
    trace: list[Call] = []
    for item in program.body:
        trace += list(item.body) * item.count if isinstance(item, Repeat) else [item]
    pairs: set[tuple[str, str]] = set()
    alive = {"logits"}
    for call in reversed(trace):
        written = {bases.get(name, name) for name in call.outputs} & buffers
        read = {bases.get(name, name) for name in call.inputs} & buffers
        together = alive | written | read
        pairs |= {(a, b) for a in written for b in together if a != b}
        alive = (alive - (written - read)) | read
    return pairs


@pytest.mark.parametrize(
    "text", [decoder(), decoder(layers=4, bias=True, pattern=2), decoder(rope=False), decoder(tied=True, dtype="bf16")]
)
def test_decoders(text: str) -> None:
    check_layout(allocate(lowered(text), SIZES))


DTYPES: st.SearchStrategy[DType] = st.sampled_from(["f32", "bf16"])
EXTENTS: st.SearchStrategy[Dimension] = st.sampled_from(["rows", "logit_rows"])


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Random programs with two repeats: values made and read anywhere, a state carried in place, views, logits at the end."""
    count = draw(st.integers(1, 3))
    buffers = {"state": Buffer("state", "f32", ("rows", draw(st.integers(1, 40))))}
    views: list[View] = []
    body: list[Call | Repeat] = [Call("make", (), ("state",))]
    known = ["state"]

    def calls(inside: bool) -> list[Call]:
        made: list[Call] = []
        local = list(known)
        for _ in range(draw(st.integers(0, 5))):
            name = f"b{len(buffers)}"
            dtype = draw(DTYPES)
            buffers[name] = Buffer(name, dtype, (draw(EXTENTS), draw(st.integers(1, 60))))
            inputs = tuple(draw(st.lists(st.sampled_from(local), max_size=3)))
            made.append(Call("make", (*inputs, "a step input"), (name,)))
            local.append(name)
            if draw(st.booleans()):
                views.append(View(f"v{len(views)}", name, ("rows", 1), 0, (1, 1)))
                local.append(views[-1].name)
        if inside:
            made.append(Call("make", (draw(st.sampled_from(local)),), ("state",)))
        # what a repeat's body makes may be read after it: its last round's value
        known.extend(name for name in local if name not in known)
        return made

    body += calls(False)
    body.append(Repeat(0, count, 1, tuple(calls(True))))
    body += calls(False)
    body.append(Repeat(0, draw(st.integers(1, 3)), 1, tuple(calls(True))))
    body += calls(False)
    buffers["logits"] = Buffer("logits", "f32", ("logit_rows", draw(st.integers(1, 60))))
    body.append(Call("make", (draw(st.sampled_from(known)),), ("logits",)))
    body.append(Call("make", (), (draw(st.sampled_from([name for name in buffers if name != "logits"])),)))
    order = draw(st.permutations(list(buffers.values())))
    return Program("step", 0, tuple(order), tuple(views), tuple(body), ())


@settings(max_examples=150, deadline=None)
@given(programs())
def test_random_programs(program: Program) -> None:
    check_layout(allocate(program, SIZES))


def test_the_check_can_fail() -> None:
    program = allocate(lowered(decoder()), SIZES)
    first = program.buckets[0]
    broken = Bucket(first.rows, first.logit_rows, tuple(0 for _ in first.offsets), first.arena_bytes)
    with pytest.raises(AssertionError):
        check_layout(Program(program.name, 0, program.buffers, program.views, program.body, (broken,)))


def test_space_is_used_again() -> None:
    """A chain of values of one size needs two places, and logits their own."""
    names = [f"b{at}" for at in range(10)]
    buffers = tuple(Buffer(name, "f32", ("rows", 16)) for name in (*names, "logits"))
    chain = [Call("make", (), ("b0",)), *(Call("make", (a,), (b,)) for a, b in pairwise(names))]
    program = Program("step", 0, buffers, (), (*chain, Call("make", ("b9",), ("logits",))), ())
    (bucket,) = allocate(program, (BucketSize(1, 1),)).buckets
    assert bucket.arena_bytes == 2 * 64


def test_lives_of_what_a_repeat_reads_last_to_its_end() -> None:
    buffers = tuple(Buffer(name, "f32", ("rows", 1)) for name in ("outer", "state", "local", "logits"))
    body = (
        Call("make", (), ("outer",)),
        Call("make", (), ("state",)),
        Repeat(
            0,
            2,
            1,
            (Call("make", ("outer",), ("local",)), Call("make", ("local",), ("state",)), Call("make", ("state",), ("state",))),
        ),
        Call("make", ("state",), ("logits",)),
    )
    found = lives(Program("step", 0, buffers, (), body, ()))
    assert found == {"outer": Life(0, 4), "state": Life(1, 5), "local": Life(2, 3), "logits": Life(5, 6)}
