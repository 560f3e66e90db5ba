"""Instruction lists: what the runtime would run is what the IR means, in place where that is safe and copied where not."""

from __future__ import annotations

import pytest
from tokenspeed.ir import module
from tokenspeed.ir.mlir import ir
from tokenspeed.passes.lower import lower
from tokenspeed.passes.select import select
from tokenspeed.plans.program import Call, Program, Repeat, step_inputs
from tokenspeed.plans.template import instantiate
from tokenspeed.runtime.functions.registry import lookup
from tokenspeed.targets.registry import find_target

from ..filecheck.test_filecheck import printed
from ..ir.modules import decoder, step, weight
from .test_fusions import fused
from .test_select import LOADS, NO_NATIVE
from .test_store_weights import MACHINE, selected

X = "tensor<?x8xf32>"
ADD = f"({X}, {X}) -> {X}"


def lowered(text: str) -> Program:
    return lower(selected(text), MACHINE)


def flat(program: Program) -> list[Call]:
    return [call for item in program.body for call in (item.body if isinstance(item, Repeat) else (item,))]


def repeat(
    body: list[str], yielded: str = "%next", after: tuple[str, ...] = (), returned: str = "%out", before: tuple[str, ...] = ()
) -> str:
    """embedding -> repeat(%h) -> what is `returned`."""
    return step(
        [
            '%ids = "ts.input"() {sym = "token_ids"} : () -> tensor<?xi32>',
            weight("t", "embed", "50x8"),
            f'%x = "ts.embedding"(%ids, %t) : (tensor<?xi32>, tensor<50x8xf32>) -> {X}',
            *before,
            f'%out = "ts.repeat"(%x) ({{\n    ^bb0(%h: {X}):',
            *body,
            f'"ts.yield"({yielded}) {{operandSegmentSizes = array<i32: 1>}} : ({X}) -> ()',
            "}) {count = 2 : i64, first = 0 : i64, operandSegmentSizes = array<i32: 1>, "
            f"resultSegmentSizes = array<i32: 1>, stride = 1 : i64}} : ({X}) -> {X}",
            *after,
            '%wanted = "ts.input"() {sym = "logit_rows"} : () -> tensor<?xi32>',
            f'%logits = "ts.gather_rows"({returned}, %wanted) : ({X}, tensor<?xi32>) -> {X}',
            f"return %logits : {X}",
        ],
        X,
    )


def run(program: Program, start: float) -> float:
    """The program on single numbers: embedding gives `start`, add and mul are themselves, copy and gather_rows copy."""
    cells: dict[str, float] = {}
    bases = {view.name: view.base for view in program.views}

    def cell(name: str) -> float:
        return cells[bases.get(name, name)]

    def call(item: Call) -> None:
        if item.function == "take_last_tokens":
            value = start
        elif item.function in {"embedding", "copy", "gather_rows"}:
            value = cell(item.inputs[0])
        else:
            a, b = map(cell, item.inputs)
            value = a + b if item.function == "add" else a * b
        cells[item.outputs[0]] = value

    for item in program.body:
        for _ in range(item.count if isinstance(item, Repeat) else 1):
            for inner in item.body if isinstance(item, Repeat) else (item,):
                call(inner)
    return cells["logits"]


def copies(program: Program) -> int:
    return sum(call.function == "copy" for call in flat(program))


def test_the_next_state_is_written_in_place_of_the_old() -> None:
    program = lowered(repeat([f'%next = "ts.add"(%h, %h) : {ADD}']))
    assert copies(program) == 0 and run(program, 3) == 12


def test_a_state_that_is_read_after_the_next_is_made_is_copied() -> None:
    body = [f'%a = "ts.add"(%h, %h) : {ADD}', f'%next = "ts.mul"(%a, %h) : {ADD}']
    assert copies(lowered(repeat(body))) == 0 and run(lowered(repeat(body)), 3) == 2 * 18**2

    late = [
        f'%next = "ts.add"(%h, %h) : {ADD}',
        f'%unused = "ts.mul"(%h, %next) : {ADD}',
        f'%z = "ts.add"(%unused, %unused) : {ADD}',
    ]
    program = late_program(late)
    assert copies(program) == 1 and run(program, 3) == 12


def late_program(body: list[str]) -> Program:
    """Lowered without removing what is unused, so that the late read stays."""
    parsed = module.parse(repeat(body))
    select(parsed, MACHINE, LOADS, NO_NATIVE)
    return lower(parsed, MACHINE)


def test_a_state_that_does_not_change_needs_nothing() -> None:
    program = lowered(repeat([], yielded="%h"))
    assert copies(program) == 0 and run(program, 3) == 3


def test_a_state_from_outside_the_layers_is_copied_in() -> None:
    before = (f'%c = "ts.mul"(%x, %x) : {ADD}',)
    program = lowered(repeat([f'%z = "ts.add"(%h, %h) : {ADD}'], yielded="%c", before=before))
    assert copies(program) == 1 and run(program, 3) == 9


def test_what_enters_the_layers_is_kept_where_it_is_read_after_them() -> None:
    """A skip connection over all layers."""
    after = (f'%skip = "ts.mul"(%x, %out) : {ADD}',)
    program = lowered(repeat([f'%next = "ts.add"(%h, %h) : {ADD}'], after=after, returned="%skip"))
    assert run(program, 3) == 3 * 12
    assert copies(program) == 1


def test_what_enters_the_layers_is_kept_where_layers_read_it_too() -> None:
    program = lowered(repeat([f'%next = "ts.mul"(%h, %x) : {ADD}']))
    assert run(program, 3) == 27


def test_what_enters_the_layers_is_kept_where_it_is_read_through_a_view() -> None:
    half = "tensor<?x4xf32>"
    before = (f'%part = "ts.slice"(%x) {{start = 4 : i64}} : ({X}) -> {half}',)
    after = (
        f'%p = "ts.slice"(%out) {{start = 0 : i64}} : ({X}) -> {half}',
        f'%both = "ts.mul"(%part, %p) : ({half}, {half}) -> {half}',
    )
    text = repeat([f'%next = "ts.add"(%h, %h) : {ADD}'], before=before, after=after, returned="%both")
    text = text.replace(f'"ts.gather_rows"(%both, %wanted) : ({X}', f'"ts.gather_rows"(%both, %wanted) : ({half}')
    text = text.replace(
        f"tensor<?xi32>) -> {X}\n    return %logits : {X}", f"tensor<?xi32>) -> {half}\n    return %logits : {half}"
    )
    text = text.replace(f"@step() -> {X}", f"@step() -> {half}")
    program = lowered(text)
    assert run(program, 3) == 3 * 12


def test_the_first_of_two_repeats_hands_its_buffer_on() -> None:
    text = repeat([f'%next = "ts.add"(%h, %h) : {ADD}'])
    start, stop = text.index('%out = "ts.repeat"'), text.index("%wanted")
    second = text[start:stop].replace("%out", "%out2").replace("(%x)", "(%out)")
    text = (text[:stop] + second + "    " + text[stop:]).replace('"ts.gather_rows"(%out,', '"ts.gather_rows"(%out2,')
    program = lowered(text)
    assert copies(program) == 0 and run(program, 1) == 16


def test_views_of_logits_are_copied_out() -> None:
    text = repeat([f'%next = "ts.add"(%h, %h) : {ADD}'])
    cut = "tensor<?x6xf32>"
    text = text.replace("return %logits", f'%cut = "ts.slice"(%logits) {{start = 0 : i64}} : ({X}) -> {cut}\n    return %cut')
    text = text.replace(f"return %cut : {X}", f"return %cut : {cut}").replace(f"@step() -> {X}", f"@step() -> {cut}")
    program = lowered(text)
    logits = next(buffer for buffer in program.buffers if buffer.name == "logits")
    assert logits.shape == ("logit_rows", 6) and run(program, 1) == 4


def test_views_inherit_the_stride_of_a_row() -> None:
    text = printed(lowered(decoder()))
    # q, k and v are windows of one buffer of 64 columns: 4, 2 and 2 heads of 8
    for name, shape, offset in (("q", "4, 8", 0), ("k", "2, 8", 32), ("v", "2, 8", 48)):
        assert f"['rows', {shape}] at {offset} by [64, 8, 1]" in text, name


@pytest.mark.parametrize(
    "text", [decoder(layers=4, bias=True, pattern=2), decoder(rope=False, tied=True)], ids=["fused", "no rope"]
)
def test_every_operand_resolves_and_every_function_exists(text: str) -> None:
    parsed = selected(text)
    program = lower(parsed, MACHINE)
    weights = {
        instantiate(module.text_attribute(item, "sym"), layer)
        for item in module.walk(module.step_block(parsed))
        if item.name in {"ts.weight", "ts.constant"}
        for layer in range(4)
    }
    known = {item.name for item in step_inputs(8, 4, 2)} | {"last_tokens"} | weights
    caches = {f"kv.{part}.{layer}" for part in "kv" for layer in range(4)}
    own = {item.name for item in (*program.buffers, *program.views)}
    buffers = {item.name for item in program.buffers}
    written: set[str] = set()
    for item in program.body:
        layers = range(item.first, item.first + item.count * item.stride, item.stride) if isinstance(item, Repeat) else range(1)
        for layer in layers:
            for call in item.body if isinstance(item, Repeat) else (item,):
                lookup(call.function)
                inputs = {instantiate(name, layer) for name in call.inputs}
                outputs = {instantiate(name, layer) for name in call.outputs}
                assert inputs <= own | known | caches, call
                assert outputs <= buffers | caches, call
                bases = {view.name: view.base for view in program.views}
                assert {bases.get(name, name) for name in inputs & own} <= written, "read before it was written"
                written |= outputs
    assert caches & written == {f"kv.{part}.{layer}" for part in "kv" for layer in range(4 if "stride = 2" in text else 2)}


def test_attention_without_rope_stores_keys_and_values_first() -> None:
    body = [call.function for call in flat(lowered(decoder(rope=False)))]
    at = body.index("kv_write")
    assert body[at : at + 2] == ["kv_write", "attention"] and "rope_kv_write" not in body
    stored = next(call for call in flat(lowered(decoder(rope=False))) if call.function == "kv_write")
    assert stored.inputs[2:] == ("slot_mapping",) and stored.outputs == ("kv.k.{i}", "kv.v.{i}")


def test_attributes_travel() -> None:
    calls = {call.function: call for call in flat(lowered(decoder(window=5, softcap=20.0, sinks=True, interleaved=True)))}
    assert calls["attention"].attributes == {"scale": 0.35, "window": 5, "softcap": 20.0}
    assert calls["attention"].inputs[-1] == "layers.{i}.sinks" and len(calls["attention"].inputs) == 8
    assert calls["rope_kv_write"].attributes == {"interleaved": True}
    assert calls["rms_norm"].attributes == {"eps": 1e-5, "cast_before_weight": True, "one_plus_weight": False}
    assert calls["gated_activation"].attributes == {"activation": "silu"}
    assert calls["rope_table"].attributes == {"scaling": 1.0}


def test_every_target_lowers_alike_but_for_its_kernels() -> None:
    parsed: ir.Module = fused(decoder(dtype="bf16"))
    machine = find_target("cpu-neon")
    select(parsed, machine, LOADS, NO_NATIVE)
    functions = {call.function for call in flat(lower(parsed, machine))}
    assert "linear_onednn" in functions and "linear" not in functions
