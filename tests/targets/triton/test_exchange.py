"""Sums over ranks through each other's memory: which operations become one, and both ranks' numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenspeed.ir import module as modules
from tokenspeed.ir.mlir import ir
from tokenspeed.targets.accelerator import Accelerator
from tokenspeed.targets.rates import KIB, MIB, nominal
from tokenspeed.targets.registry import ACCELERATORS
from tokenspeed.targets.triton.build import build
from tokenspeed.targets.triton.exchange import Way, add_or_all, add_rms_norm_or_all, all_gather, all_reduce_or_nothing
from tokenspeed.targets.triton.kernel import DeviceOperation, DeviceSetting, Launch

from ...ir.modules import step
from .compared import SETTING
from .interpreter import Interpreter, chosen_launch

Template = Callable[[ir.Operation, DeviceSetting], DeviceOperation]

RANKS, COLUMNS, ROWS = 2, 80, 3
LIMITS: dict[Way, str] = {"in_words": "exchange.words", "in_rows": "exchange.rows"}


def reaching(accelerator: Accelerator, **bytes_: int) -> Accelerator:
    """With links, and sums through each other's memory of so many bytes by way."""
    sizes = {name: size for name, size in accelerator.sizes.items() if not name.startswith("exchange.")}
    sizes["link.devices"] = nominal(8, "1", "test")
    sizes |= {LIMITS[way]: nominal(count, "B", "test") for way, count in bytes_.items()}  # pyright: ignore[reportArgumentType]
    return replace(accelerator, sizes=sizes)


def setting(**bytes_: int) -> DeviceSetting:
    return replace(SETTING, accelerator=reaching(SETTING.accelerator, **bytes_), max_rows=2048)


@pytest.fixture
def context() -> Iterator[None]:
    with modules.context():
        yield


def operations(last: str, dtype: str = "f16", columns: int = COLUMNS) -> tuple[ir.Operation, ir.Operation, ir.Module]:
    """A sum over the ranks, what reads it (the sum where there is nothing), and what keeps both."""
    x, weight = f"tensor<?x{columns}x{dtype}>", f"tensor<{columns}x{dtype}>"
    following = {
        "norm": f'%r:2 = "ts.add_rms_norm"(%s, %k, %w) {{cast_before_weight = true, eps = 1.0e-5 : f64, one_plus_weight = false}}'
        f" : ({x}, {x}, {weight}) -> ({x}, {x})",
        "add": f'%r = "ts.add"(%k, %s) : ({x}, {x}) -> {x}',
        "both": f'%r = "ts.add"(%s, %s) : ({x}, {x}) -> {x}',
        "nothing": "",
    }
    lines = [
        f'%x = "ts.input"() {{sym = "x"}} : () -> {x}',
        f'%k = "ts.input"() {{sym = "k"}} : () -> {x}',
        f'%w = "ts.input"() {{sym = "w"}} : () -> {weight}',
        f'%s = "ts.all_reduce"(%x) {{axis = "tp", ranks = {RANKS} : i64}} : ({x}) -> {x}',
        following[last],
        "return",
    ]
    module = modules.parse(step([line for line in lines if line]))
    found = [view.operation for view in modules.step_block(module).operations]
    summed = next(operation for operation in found if operation.name == "ts.all_reduce")
    return summed, found[-2], module


def launched(operation: DeviceOperation, bounds: tuple[int, ...]) -> list[list[bool]]:
    """For each step, whether it runs in buckets of so many rows."""
    return [[step.function.variants([most])[0][1] is not None for most in bounds] for step in operation.steps]


@pytest.mark.parametrize(("last", "made"), [("norm", add_rms_norm_or_all), ("add", add_or_all)])
def test_small_messages_go_together_with_what_follows(context: None, last: str, made: Template) -> None:
    summed, reader, _module = operations(last, columns=4096)
    chosen = setting(in_words=256 * KIB, in_rows=1 * MIB)
    library = all_reduce_or_nothing(summed, chosen)
    assert library.steps == () and library.before[0].attributes == {"axis": "tp", "ranks": RANKS, "above": 128}
    both = made(reader, chosen)
    assert launched(both, (1, 32, 64, 128, 256)) == [
        [False, False, False, False, True],
        [True, True, False, False, False],
        [False, False, True, True, False],
    ]
    assert both.more == (summed.operands[0],) and len(both.exchanges) == 2


def test_a_sum_that_is_read_twice_stays_by_itself(context: None) -> None:
    summed, reader, _module = operations("both", columns=4096)
    chosen = setting(in_words=256 * KIB)
    assert launched(all_reduce_or_nothing(summed, chosen), (1, 64)) == [[True, False]]
    assert add_or_all(reader, chosen).exchanges == ()


@pytest.mark.parametrize(
    ("dtype", "columns", "accelerator"), [("f32", 4096, "h200"), ("bf16", 4100, "h200"), ("bf16", 4096, "mi300x")]
)
def test_what_the_library_does(context: None, dtype: str, columns: int, accelerator: str) -> None:
    summed, reader, _module = operations("norm", dtype, columns)
    chosen = replace(SETTING, accelerator=ACCELERATORS[accelerator])
    assert all_reduce_or_nothing(summed, chosen).before[0].attributes["above"] == 0
    assert launched(add_rms_norm_or_all(reader, chosen), (1,)) == [[True]]


@pytest.mark.parametrize("way", ["in_words", "in_rows"])
@pytest.mark.parametrize("target", ["h200", "mi300x"])
def test_machine_code(context: None, tmp_path_factory: pytest.TempPathFactory, way: Way, target: str) -> None:
    """The number of a message travels with its words; behind rows a flag is set for the whole system to see."""
    accelerator = reaching(ACCELERATORS[target], **{way: MIB})
    _, reader, _module = operations("norm", "bf16", 8192)
    launch = _launch(add_rms_norm_or_all(reader, replace(SETTING, accelerator=accelerator)), 1)
    kernel, _binary = build(launch, accelerator, str(tmp_path_factory.mktemp("triton")))
    assert kernel.receipt.spills == 0 and kernel.dependent_launch == (target == "h200")


def _launch(operation: DeviceOperation, rows: int) -> Launch:
    launch = chosen_launch(operation.steps[-1].function, {"rows": rows, "logit_rows": 1})
    assert launch is not None
    return launch


@pytest.mark.parametrize("way", ["in_words", "in_rows"])
def test_numbers_of_both_ranks(context: None, interpreter: Interpreter, way: Way) -> None:
    """Three messages: each rank finds in its memory what the test, as the other, wrote there, and writes alike to the other."""
    _, reader, _module = operations("norm")
    made = add_rms_norm_or_all(reader, setting(**{way: MIB}))
    launch = replace(_launch(made, ROWS), grid=(1, 1, 1))  # one block does all rows, in turns
    (exchange,) = made.exchanges
    generator = np.random.default_rng(2)
    x, residual = generator.standard_normal((2, RANKS, ROWS, COLUMNS)).astype(np.float16)
    weight = generator.standard_normal(COLUMNS).astype(np.float16)
    memory = [np.zeros(exchange.bytes, np.uint8) for _ in range(RANKS)]
    data = exchange.bytes - 128 * 2 * RANKS * COLUMNS * (4 if way == "in_words" else 2)
    for row in range(ROWS):
        # a place of a message is written again two messages later, so that rows come one at a time here
        for me in range(RANKS):
            sent = memory[me].copy()
            _write(sent, data, way, row + 1, 1 - me, x[1 - me, row])
            other = np.zeros_like(sent)
            total, out = np.full((2, 1, COLUMNS), 77, np.float16)
            peers = np.zeros(RANKS + 1, np.int64)
            peers[RANKS] = me
            exchanges = [sent, other] if me == 0 else [other, sent]
            operands = [x[me, row : row + 1], residual[0, row : row + 1], weight, peers, total, out, *exchanges]
            interpreter.launch(launch, operands, {"rows": 1, "logit_rows": 1}, {3: (6, 7)})
            expected = (x[0, row].astype(np.float32) + x[1, row] + residual[0, row]).astype(np.float16)
            np.testing.assert_array_equal(total[0], expected)
            wide = expected.astype(np.float32)
            normed = (wide / np.sqrt((wide * wide).mean() + 1e-5)).astype(np.float16).astype(np.float32)
            np.testing.assert_allclose(out[0].astype(np.float32), normed * weight, rtol=2e-3, atol=1e-3)
            written = np.zeros_like(other)
            _write(written, data, way, row + 1, me, x[me, row])
            np.testing.assert_array_equal(other, written)
            assert sent[:4].view(np.int32)[0] == row + 1
            memory[me][:4] = sent[:4]


def _write(memory: NDArray[np.uint8], data: int, way: Way, count: int, rank: int, values: NDArray[np.float16]) -> None:
    """What a rank's message number `count` of block 0 leaves in another's memory."""
    place = (count & 1) * RANKS + rank
    if way == "in_words":
        words = memory[data:].view(np.int64)[place * COLUMNS // 2 :][: COLUMNS // 2]
        words[:] = values.view(np.uint32).astype(np.int64) | (np.int64(count) << 32)
        return
    memory[data:].view(np.float16)[place * COLUMNS :][:COLUMNS] = values
    flags = memory[128 * 4 :].view(np.int32) if len(memory) % 4 == 0 else memory[:0].view(np.int32)
    flags[rank] = count


def test_columns_of_both_ranks_side_by_side(context: None, interpreter: Interpreter) -> None:
    x, whole = f"tensor<?x{COLUMNS}xf16>", f"tensor<?x{RANKS * COLUMNS}xf16>"
    lines = [
        f'%x = "ts.input"() {{sym = "x"}} : () -> {x}',
        f'%g = "ts.all_gather"(%x) {{axis = "tp", dimension = 1 : i64, ranks = {RANKS} : i64}} : ({x}) -> {whole}',
        "return",
    ]
    module = modules.parse(step(lines))
    gathered = [view.operation for view in modules.step_block(module).operations][1]
    made = all_gather(gathered, setting(in_words=MIB))
    launch = replace(_launch(made, 1), grid=(1, 1, 1))
    values = np.random.default_rng(3).standard_normal((RANKS, 1, COLUMNS)).astype(np.float16)
    block = launch.constants["BLOCK"]
    assert isinstance(block, int)
    for me in range(RANKS):
        memory, other = (np.zeros(made.exchanges[0].bytes, np.uint8) for _ in range(2))
        words = memory[128 * 4 :].view(np.int64)[(RANKS + 1 - me) * block :][: COLUMNS // 2]
        words[:] = values[1 - me, 0].view(np.uint32).astype(np.int64) | (np.int64(1) << 32)
        peers, out = np.array([0, 0, me], np.int64), np.full((1, RANKS * COLUMNS), 77, np.float16)
        exchanges = [memory, other] if me == 0 else [other, memory]
        interpreter.launch(launch, [values[me], peers, out, *exchanges], {"rows": 1, "logit_rows": 1}, {1: (3, 4)})
        np.testing.assert_array_equal(out[0], values.reshape(-1))
        sent = other[128 * 4 :].view(np.int64)[(RANKS + me) * block :][: COLUMNS // 2]
        np.testing.assert_array_equal((sent & 0xFFFFFFFF).astype(np.uint32).view(np.float16), values[me, 0])
