"""Arrays without torch: bfloat16 as bits, the same rounding as torch's, the same memory as tensors."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenspeed.runtime.device_arrays import TORCH_TYPES
from tokenspeed.runtime.host_arrays import NUMPY_TYPES, HostArray, committed, committed_together, large_bytes, narrowed, widened


@given(st.lists(st.floats(width=32), min_size=1, max_size=40))
def test_rounding_to_bfloat16_is_that_of_torch(values: list[float]) -> None:
    given_values = np.array(values, np.float32)
    expected = torch.from_numpy(given_values.copy()).bfloat16()
    found = torch.from_numpy(narrowed(given_values)).view(torch.bfloat16)
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found[~found.isnan()], expected[~expected.isnan()])
    assert np.array_equal(widened(narrowed(given_values)), expected.float().numpy(), equal_nan=True)


def test_a_tensor_is_the_same_memory() -> None:
    for dtype, kind in TORCH_TYPES.items():
        array = committed((3, 4), dtype)
        assert array.tensor.dtype == kind and array.tensor.shape == (3, 4) and array.data.dtype == NUMPY_TYPES[dtype]
        array.tensor[1, 2] = 1
        assert np.count_nonzero(array.data) == 1 and array.first(1).data.sum() == 0


def test_arrays_made_together_do_not_overlap() -> None:
    made = committed_together({"a": ((3, 5), "f32"), "b": ((7,), "u8"), "c": ((2, 2), "bf16")})
    for number, array in enumerate(made.values(), 1):
        assert not array.data.any()
        array.data.fill(number)
    assert [float(array.data.min()) for array in made.values()] == [1, 2, 3]
    assert [array.shape for array in made.values()] == [(3, 5), (7,), (2, 2)]


def test_large_arrays_are_zero_and_writable() -> None:
    array = committed((1 << 20,), "f32")
    assert not array.data.any()
    array.data[-1] = 2.0
    assert HostArray(array.data[-1:], "f32").as_float().tolist() == [2.0]


def test_large_arrays_begin_at_a_huge_page() -> None:
    for count in (1, 5000, 3 << 20):
        data = large_bytes(count)
        assert len(data) == count and data.ctypes.data % (2 << 20) == 0 and data.flags.writeable and not data.any()
