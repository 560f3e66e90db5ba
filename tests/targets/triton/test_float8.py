"""8-bit floats: their bits are torch's, and attention over them is attention over the numbers they stand for, interpreted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenspeed.targets.triton.operand import Layout
from tokenspeed.targets.triton.rope import kv_write

from .compared import SETTING, Array, compare
from .interpreter import Interpreter
from .test_attention import STYLES, _case

FLOAT8 = replace(SETTING, kv_dtype="f8e4m3")


def bits(values: Array) -> Array:
    return torch.from_numpy(values).clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8).numpy()


def test_rounding(interpreter: Interpreter) -> None:
    """Every number between two 8-bit floats, the halves, what is too large or too small, and what is none."""
    exact = torch.arange(0, 127, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    halves = (exact[1:] + exact[:-1]) / 2
    around = np.concatenate([exact, halves, np.nextafter(halves, 1e3), np.nextafter(halves, -1e3), [1e-9, 500.0, 1e30]])
    values = np.resize(np.concatenate([around, -around]).astype(np.float32), (40, 2, 16))
    values[7, 1, 3] = np.nan
    k = Layout("f32", (None, 2, 16), (32, 16, 1))
    launch = kv_write(k, k, FLOAT8).variants([40])[0][1]
    assert launch is not None
    caches = [np.zeros((10, 2, 4, 16), np.uint8) for _ in range(2)]
    interpreter.launch(launch, [values, -values, np.arange(40), *caches], {"rows": 40, "logit_rows": 40})
    for cache, given in zip(caches, (values, -values), strict=True):
        rows = cache.swapaxes(1, 2).reshape(40, 2, 16)
        assert np.array_equal(rows & 127, bits(given) & 127)
        assert np.array_equal(rows[~np.isnan(given)], bits(given)[~np.isnan(given)])


@pytest.mark.parametrize("style", [STYLES[0], STYLES[3]])
@pytest.mark.parametrize("step", [([1, 1, 1], [1, 31, 17], 4, 4), ([1, 1, 9, 2, 7], [30, 3, 26, 2, 7], 24, 8)])
def test_attention(interpreter: Interpreter, style: tuple[int, float, bool], step: tuple[list[int], list[int], int, int]) -> None:
    case = _case(*step, style)
    kept = {at: bits(item) for at, item in enumerate(case.more[:2])}
    stand_for = [torch.from_numpy(item).view(torch.float8_e4m3fn).float().numpy() for item in kept.values()]
    compare(interpreter, replace(case, more=[*stand_for, *case.more[2:]], kept=kept), FLOAT8)
