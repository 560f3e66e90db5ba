"""Mutations of the stages of a pipeline: every one of them must be caught."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator

import pytest
from tokenspeed.ir import module, rank_operations
from tokenspeed.ir.mlir import ir
from tokenspeed.ir.types import dtype_of, placement_of, shape_of, tensor
from tokenspeed.passes.split_stages import split_stages
from tokenspeed.passes.verify_stages import Event, StageMismatch, play, verify_stages

from ..ir.modules import decoder
from ..mesh import laid_out, mesh

Mutation = Callable[[list[ir.Module], random.Random], None]

MESH = [("pp", 3), ("tp", 2)]


@pytest.fixture(autouse=True)
def in_context() -> Iterator[None]:
    with module.context():
        yield


def stages() -> list[ir.Module]:
    """Three, between which two values cross."""
    return [module.parse(text) for text in texts()]


@functools.cache
def texts() -> tuple[str, ...]:
    text = decoder(layers=3)
    old = '%final = "ts.rms_norm"(%out, %last)'
    assert old in text
    late = (
        '%gone = "ts.slice"(%x) {start = 0 : i64} : (tensor<?x32xf32>) -> tensor<?x16xf32>\n'
        '    %wide = "ts.reshape"(%out) : (tensor<?x32xf32>) -> tensor<?x2x16xf32>\n'
        '    %flat = "ts.reshape"(%wide) : (tensor<?x2x16xf32>) -> tensor<?x32xf32>\n'
        '    %late = "ts.add"(%flat, %x) : (tensor<?x32xf32>, tensor<?x32xf32>) -> tensor<?x32xf32>\n'
        '    %final = "ts.rms_norm"(%late, %last)'
    )
    return tuple(map(str, split_stages(laid_out(module.parse(text.replace(old, late)), mesh(tp=2)), [1, 2])))


def named(parsed: ir.Module, *names: str) -> list[ir.Operation]:
    return [item for item in module.walk(module.step_block(parsed)) if item.name in names]


def drop_send(found: list[ir.Module], chosen: random.Random) -> None:
    chosen.choice(named(chosen.choice(found[:2]), "ts.send")).erase()


def drop_receive(found: list[ir.Module], chosen: random.Random) -> None:
    """Its readers get the other value that is received."""
    items = named(chosen.choice(found[1:]), "ts.receive")
    chosen.shuffle(items)
    items[0].results[0].replace_all_uses_with(items[1].results[0])
    items[0].erase()


def double_send(found: list[ir.Module], chosen: random.Random) -> None:
    item = chosen.choice(named(chosen.choice(found[:2]), "ts.send"))
    with ir.InsertionPoint(item):
        item.clone()


def double_receive(found: list[ir.Module], chosen: random.Random) -> None:
    item = chosen.choice(named(chosen.choice(found[1:]), "ts.receive"))
    with ir.InsertionPoint(item):
        item.clone()


def reorder_sends(found: list[ir.Module], chosen: random.Random) -> None:
    one, other = named(chosen.choice(found[:2]), "ts.send")
    other.move_before(one)


def reorder_receives(found: list[ir.Module], chosen: random.Random) -> None:
    one, other = named(chosen.choice(found[1:]), "ts.receive")
    other.move_before(one)


def swap_stages(found: list[ir.Module], chosen: random.Random) -> None:
    at = chosen.randrange(2)
    found[at], found[at + 1] = found[at + 1], found[at]


def drop_stage(found: list[ir.Module], chosen: random.Random) -> None:
    del found[chosen.randrange(3)]


def other_shape(found: list[ir.Module], chosen: random.Random) -> None:
    value = chosen.choice(named(chosen.choice(found[1:]), "ts.receive")).results[0]
    value.set_type(tensor(dtype_of(value), (None, chosen.choice([8, 16, 64])), placement_of(value)))


def other_type(found: list[ir.Module], chosen: random.Random) -> None:
    value = chosen.choice(named(chosen.choice(found[1:]), "ts.receive")).results[0]
    value.set_type(tensor("bf16", shape_of(value), placement_of(value)))


def other_placement(found: list[ir.Module], chosen: random.Random) -> None:
    value = chosen.choice(named(chosen.choice(found[1:]), "ts.receive")).results[0]
    value.set_type(tensor(dtype_of(value), shape_of(value), {"tp": chosen.choice(["partial", "shard(1)"])}))


def other_axis(found: list[ir.Module], chosen: random.Random) -> None:
    stage = chosen.choice(found)
    chosen.choice(named(stage, "ts.send", "ts.receive")).attributes["axis"] = module.text("tp")


def send_from_inside(found: list[ir.Module], chosen: random.Random) -> None:
    """In every round of the layers, to the stage behind."""
    stage = chosen.choice(found[:2])
    (repeat,) = named(stage, "ts.repeat")
    body = module.body_of(repeat)
    with ir.InsertionPoint(list(body.operations)[-1].operation):
        rank_operations.Send(body.arguments[0], module.text("x"), module.text("pp"))


def send_back(found: list[ir.Module], chosen: random.Random) -> None:
    """The last stage sends, the first receives."""
    value = named(found[2], "ts.receive")[0].results[0]
    with ir.InsertionPoint(list(module.step_block(found[2]).operations)[-1].operation):
        rank_operations.Send(value, module.text("x"), module.text("pp"))
    with ir.InsertionPoint.at_block_begin(module.step_block(found[0])):
        rank_operations.Receive(value.type, module.text("x"), module.text("pp"))


MUTATIONS = [
    drop_send,
    drop_receive,
    double_send,
    double_receive,
    reorder_sends,
    reorder_receives,
    swap_stages,
    drop_stage,
    other_shape,
    other_type,
    other_placement,
    other_axis,
    send_from_inside,
    send_back,
]


def test_stages_are_sound():
    verify_stages(stages(), MESH)


def test_mutations_are_caught():
    """Each of them, four times with seeded choices."""
    missed = []
    for mutation in MUTATIONS:
        for seed in range(4):
            found = stages()
            mutation(found, random.Random(seed))
            try:
                verify_stages(found, MESH)
            except StageMismatch:
                continue
            missed.append((mutation.__name__, seed))
    assert missed == []


def test_collectives_of_ranks_that_differ_are_deadlocks():
    """Ranks of one stage run one program; were they not to, it would be noticed."""
    before, behind = Event("ts.all_reduce along tp", (0, 1)), Event("ts.all_reduce along tp", (2, 3))
    sound = {0: [before, Event("send x", (0, 2))], 1: [before, Event("send x", (1, 3))]}
    sound |= {2: [Event("receive x", (0, 2)), behind], 3: [Event("receive x", (1, 3)), behind]}
    play(sound, 2, 4)
    with pytest.raises(StageMismatch, match="no rank can go on"):
        play(sound | {1: [*reversed(sound[1])], 3: [*reversed(sound[3])]}, 2, 4)
    crossed = {0: [Event("send x", (0, 1)), Event("receive y", (1, 0))], 1: [Event("send y", (1, 0)), Event("receive x", (0, 1))]}
    with pytest.raises(StageMismatch, match="rank 0 at send x of ranks"):
        play(crossed, 1, 1)


def test_a_deeper_pipeline_than_there_are_stages_ends_too():
    found = stages()
    verify_stages(found, MESH, steps=9)
    with pytest.raises(StageMismatch, match="3 stages on a mesh of"):
        verify_stages(found, [("tp", 2), ("pp", 3)])
