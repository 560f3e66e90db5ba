"""What an operation costs: worked out by hand for each kind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tokenspeed.ir import module
from tokenspeed.targets.cost import Cost, cost_of

from ..ir.modules import Sample, step, weight
from ..ir.samples import SOUND


@pytest.fixture(autouse=True)
def in_context() -> Iterator[None]:
    with module.context():
        yield


@pytest.mark.parametrize(
    ("name", "flops_per_row", "bytes_per_row"),
    [
        ("ts.rms_norm", 4 * 8, 4 * (8 + 8)),
        ("ts.add_rms_norm", 5 * 8, 4 * 4 * 8),
        ("ts.rope", 3 * 32, 4 * (32 + 6 + 6 + 32)),
        ("ts.gated_activation", 5 * 8, 4 * 3 * 8),
        ("ts.activation", 4 * 8, 4 * 2 * 8),
        ("ts.scale", 8, 4 * 2 * 8),
        ("ts.layer_norm", 7 * 8, 4 * 2 * 8),
        ("ts.add", 8, 4 * 3 * 8),
        ("ts.embedding", 0, 4 * 2 * 8),
        ("ts.reshape", 0, 0),
        ("ts.slice", 0, 0),
        ("ts.input", 0, 0),
    ],
)
def test_work_grows_with_rows(name: str, flops_per_row: float, bytes_per_row: float) -> None:
    sample = next(item for item in SOUND if item.name == name)
    parsed = module.parse(sample.module())
    operation = next(item for item in module.walk(module.step_block(parsed)) if item.name == name)
    small, large = cost_of(operation, 10), cost_of(operation, 30)
    assert (large.flops - small.flops) / 20 == flops_per_row
    assert (large.activation_bytes - small.activation_bytes) / 20 == bytes_per_row
    assert small.weight_bytes == 0, "inputs are no weights"


@pytest.mark.parametrize(("dtype", "width"), [("f32", 4), ("bf16", 2)])
def test_a_linear_reads_its_weights_once_whatever_the_rows(dtype: str, width: int) -> None:
    x, y = f"tensor<?x8x{dtype}>", f"tensor<?x6x{dtype}>"
    kind = Sample(
        "ts.linear", (x, f"tensor<6x8x{dtype}>", f"tensor<6x{dtype}>"), (y,), "operandSegmentSizes = array<i32: 1, 1, 1>"
    )
    body = [f'%x = "ts.input"() {{sym = "x"}} : () -> {x}', weight("w", "w", "6x8", dtype), weight("b", "b", "6", dtype)]
    parsed = module.parse(step([*body, kind.line(["%x", "%w", "%b"]), "return"]))
    operation = next(item for item in module.walk(module.step_block(parsed)) if item.name == "ts.linear")
    for rows in (1, 100):
        assert cost_of(operation, rows) == Cost(2 * rows * 6 * 8, width * (6 * 8 + 6), width * rows * (8 + 6))
        assert cost_of(operation, rows).bytes == width * (54 + rows * 14)
