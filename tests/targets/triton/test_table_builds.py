"""What a table of tiles says can be built, and plans are made of it: a row for each function of linear layers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tokenspeed.ir import module as modules
from tokenspeed.ir.mlir import ir
from tokenspeed.plans.device_kernels import Product
from tokenspeed.targets.registry import ACCELERATORS
from tokenspeed.targets.triton.attention import cached_attention
from tokenspeed.targets.triton.attention import measured as measured_attention
from tokenspeed.targets.triton.build import build
from tokenspeed.targets.triton.kernel import DeviceSetting
from tokenspeed.targets.triton.linear import linear, measured
from tokenspeed.targets.triton.measured_tiles import LinearRow, table_of

H200 = ACCELERATORS["h200"]
SETTING = DeviceSetting(H200, 2048, 64, 64, 64, 128)
ROWS = list({row.tiles.way: row for row in table_of("sm_90a").linear}.values())


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("triton"))


@pytest.fixture
def context() -> Iterator[None]:
    with modules.context():
        yield


def module_of(types: tuple[str, ...], line: str) -> ir.Module:
    """A module of one operation."""
    lines = [f'%a{at} = "ts.input"() {{sym = "a{at}"}} : () -> {kind}' for at, kind in enumerate(types)]
    return modules.parse("module { func.func @step() {\n" + "\n".join([*lines, line, "return"]) + "\n} }")


def operation_of(module: ir.Module) -> ir.Operation:
    """It lives as long as the module."""
    return [view.operation for view in modules.step_block(module).operations][-2]


def layer(columns: int, inner: int) -> ir.Module:
    types = (f"tensor<?x{inner}xbf16>", f"tensor<{columns}x{inner}xbf16>")
    segments = "operandSegmentSizes = array<i32: 1, 1, 0>"
    return module_of(types, f'%r = "ts.linear"(%a0, %a1) {{{segments}}} : ({", ".join(types)}) -> tensor<?x{columns}xbf16>')


@pytest.mark.usefixtures("context")
@pytest.mark.parametrize("row", ROWS, ids=[row.tiles.way for row in ROWS])
def test_the_tiles_of_a_row_build(row: LinearRow, cache: str) -> None:
    module = layer(row.columns, row.inner)
    made = operation_of(module)
    (step,) = linear(made, SETTING).steps
    ((_, launch),) = step.function.variants([row.rows])
    assert launch is not None and launch.source.endswith(f".{row.tiles.way}") and launch.warps == row.tiles.warps
    # what might not fit with other types of results has tiles that do
    assert launch.otherwise is not None and launch.otherwise.parameters == launch.parameters
    kernel, _ = build(launch, H200, cache)
    assert kernel.receipt.spills == 0
    figure = measured(made, H200, row.rows)
    assert figure is not None and figure.share == row.share and "measured: " in figure.receipt
    assert measured(made, ACCELERATORS["b200"], row.rows) is None


@pytest.mark.usefixtures("context")
def test_attention_takes_the_shares_of_its_row() -> None:
    q = "tensor<?x32x128xbf16>"
    scores = "scale = 0.1 : f64, softcap = 0.0 : f64, window = 0 : i64, operandSegmentSizes = array<i32: 1, 0>"
    line = f'%r = "ts.cached_attention"(%a0) {{kv_heads = 8 : i64, layer = "0", {scores}}} : ({q}) -> {q}'
    module = module_of((q,), line)
    made = operation_of(module)
    split = cached_attention(made, SETTING).steps[0].function
    assert split.decode is not None
    for row in (item for item in table_of("sm_90a").attention if (item.kv_heads, item.width) == (8, 128)):
        ((_, launch),) = split.decode([row.rows])
        assert launch is not None
        assert (launch.grid, launch.warps) == ((Product(factors=("rows", row.tiles.shares + 1)), 8, 1), row.tiles.warps)
        figure = measured_attention(made, H200, row.rows)
        assert figure is not None and figure.share is None and str(row.tiles) in figure.receipt
