"""Every operation prints, parses and prints again alike; every verifier refuses wrong shapes and says what is wrong."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tokenspeed.ir import dialect, module, rank_operations
from tokenspeed.ir.types import tensor, with_placement

from .modules import Sample, decoder
from .samples import SOUND, WRONG, WRONG_REPEATS, repeat


@pytest.fixture(autouse=True)
def in_context() -> Iterator[None]:
    with module.context():
        yield


@pytest.mark.parametrize("sample", SOUND, ids=lambda sample: f"{sample.name}-{len(sample.operands)}")
def test_prints_and_parses_back(sample: Sample) -> None:
    printed = str(module.parse(sample.module()))
    assert sample.name in printed
    assert str(module.parse(printed)) == printed


@pytest.mark.parametrize("text", [decoder(), decoder(bias=True, pattern=2, dtype="bf16"), decoder(tied=True, window=3), repeat()])
def test_whole_modules_print_and_parse_back(text: str) -> None:
    printed = str(module.parse(text))
    assert str(module.parse(printed)) == printed


def test_every_operation_has_a_sample() -> None:
    names = {sample.name for sample in SOUND} | {"ts.repeat", "ts.yield", "ts.recurrence", "ts.step"}
    assert names == operation_names()


def operation_names() -> set[str]:
    defined = vars(dialect) | vars(rank_operations)
    found = (getattr(value, "OPERATION_NAME", None) for value in defined.values())
    return {name for name in found if isinstance(name, str) and name.startswith("ts.")}


@pytest.mark.parametrize(("sample", "message"), WRONG, ids=lambda value: getattr(value, "name", ""))
def test_wrong_shapes_are_refused(sample: Sample, message: str) -> None:
    with pytest.raises(module.IrError, match=message):
        module.parse(sample.module())


@pytest.mark.parametrize(("text", "message"), WRONG_REPEATS)
def test_wrong_repeats_are_refused(text: str, message: str) -> None:
    with pytest.raises(module.IrError, match=message):
        module.parse(text)


def test_every_verified_operation_is_refused_at_least_once() -> None:
    structural = {"ts.aten", "ts.yield", "ts.repeat", "ts.recurrence", "ts.step"}
    assert {sample.name for sample, _ in WRONG} == operation_names() - structural


def test_errors_name_line_and_column() -> None:
    sample = next(sample for sample, _ in WRONG if sample.name == "ts.linear")
    with pytest.raises(module.IrError, match=r"\d+:\d+.*'ts.linear'"):
        module.parse(sample.module())
    with pytest.raises(module.IrError, match=r":1:"):
        module.parse("module {")


def test_placements_are_part_of_types_and_print_in_order_of_axes() -> None:
    parsed = module.parse(SOUND[0].module())
    value = next(iter(module.walk(module.step_block(parsed)))).results[0]
    with_placement(value, {"tp": "shard(0)", "dp": "replicate"})
    assert 'tensor<?xi32, {dp = "replicate", tp = "shard(0)"}>' in str(parsed)
    assert str(tensor("u8", [None, 3])) == "tensor<?x3xui8>"


def test_erase_unused_keeps_what_has_effects() -> None:
    parsed = module.parse(decoder())
    before = [operation.name for operation in module.walk(module.step_block(parsed))]
    module.erase_unused(module.step_block(parsed))
    assert [operation.name for operation in module.walk(module.step_block(parsed))] == before


def test_erase_unused_removes_chains_and_merge_equal_makes_equal_values_one() -> None:
    text = """
module {
  func.func @step() -> tensor<?x8xf32> {
    %x = "ts.input"() {sym = "x"} : () -> tensor<?x8xf32>
    %a = "ts.add"(%x, %x) : (tensor<?x8xf32>, tensor<?x8xf32>) -> tensor<?x8xf32>
    %dead = "ts.mul"(%a, %x) : (tensor<?x8xf32>, tensor<?x8xf32>) -> tensor<?x8xf32>
    %dead2 = "ts.mul"(%dead, %x) : (tensor<?x8xf32>, tensor<?x8xf32>) -> tensor<?x8xf32>
    %b = "ts.add"(%x, %x) : (tensor<?x8xf32>, tensor<?x8xf32>) -> tensor<?x8xf32>
    %c = "ts.mul"(%a, %b) : (tensor<?x8xf32>, tensor<?x8xf32>) -> tensor<?x8xf32>
    return %c : tensor<?x8xf32>
  }
}"""
    parsed = module.parse(text)
    module.erase_unused(module.step_block(parsed))
    module.merge_equal(parsed)
    assert [operation.name for operation in module.walk(module.step_block(parsed))] == [
        "ts.input",
        "ts.add",
        "ts.mul",
        "func.return",
    ]
