"""Rope settings recovered from GGUF, compared with transformers' own rope functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenspeed.compiler.frontends.gguf_metadata import GgufMetadata
from tokenspeed.compiler.frontends.gguf_rope import llama3_scaling, rope_settings
from tokenspeed.plans.errors import ModelError
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


def inverse_frequencies(theta: float, scaling: dict[str, Any] | None, head_dim: int) -> np.ndarray:
    keywords: dict[str, Any] = {"rope_theta": theta, "rope_scaling": scaling and dict(scaling)}
    config = LlamaConfig(hidden_size=head_dim * 2, num_attention_heads=2, max_position_embeddings=1 << 20, **keywords)
    plain = 1.0 / (theta ** (torch.arange(0, head_dim, 2).float() / head_dim))
    if scaling is None:
        return plain.numpy()
    return ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, torch.device("cpu"))[0].numpy()


def factors_of(scaling: dict[str, Any], theta: float, head_dim: int) -> np.ndarray:
    """The tensor that a converter writes: by how much each inverse frequency is divided."""
    return (inverse_frequencies(theta, None, head_dim) / inverse_frequencies(theta, scaling, head_dim)).astype(np.float32)


@pytest.mark.parametrize(("factor", "head_dim"), [(8.0, 128), (32.0, 64)])
def test_llama_3_scaling_is_recognised(factor: float, head_dim: int) -> None:
    published = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    found = llama3_scaling(factors_of(published, 500000.0, head_dim), 500000.0, head_dim, "x")
    assert found == published


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    factor=st.floats(1.5, 64),
    low=st.floats(0.5, 3),
    ratio=st.floats(2, 8),
    context=st.sampled_from([4096, 8192, 16384, 32768]),
    theta=st.sampled_from([1e4, 5e5, 1e6]),
)
def test_other_llama3_scalings_give_the_same_frequencies(
    factor: float, low: float, ratio: float, context: int, theta: float
) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": low * ratio,
        "original_max_position_embeddings": context,
    }
    found = llama3_scaling(factors_of(scaling, theta, 128), theta, 128, "x")
    np.testing.assert_allclose(inverse_frequencies(theta, found, 128), inverse_frequencies(theta, scaling, 128), rtol=2e-5)


@pytest.mark.parametrize(
    "factors",
    [np.full(32, 2.0), np.linspace(1, 8, 32), np.full(31, 1.0), np.full(32, 0.5), np.full(32, np.nan)],
    ids=["uniform", "straight", "length", "below one", "not a number"],
)
def test_other_factors_are_refused(factors: np.ndarray) -> None:
    with pytest.raises(ModelError, match="llama3"):
        llama3_scaling(factors, 1e4, 64, "x")


def settings_of(factors: np.ndarray | None = None, **keys: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"llama.context_length": 4096}
    values |= {f"llama.rope.{name.replace('__', '.')}": value for name, value in keys.items()}
    return rope_settings(GgufMetadata(Path("x.gguf"), values, ""), "llama", 64, factors)


def test_declared_scalings() -> None:
    assert settings_of() == {"rope_theta": 10000.0, "rope_scaling": None}
    assert settings_of(freq_base=5e5, scaling__type="none") == {"rope_theta": 5e5, "rope_scaling": None}
    assert settings_of(scaling__type="linear", scaling__factor=1.0)["rope_scaling"] is None
    assert settings_of(scaling__type="linear", scaling__factor=4.0)["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    assert settings_of(scale_linear=2.0)["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    yarn = settings_of(scaling__type="yarn", scaling__factor=4.0, scaling__original_context_length=2048)["rope_scaling"]
    assert yarn == {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
    assert settings_of(factors=np.ones(32))["rope_scaling"] is None


def test_scalings_that_transformers_lacks_are_refused() -> None:
    with pytest.raises(ModelError, match="longrope"):
        settings_of(scaling__type="longrope")
    with pytest.raises(ModelError, match="yarn_log_multiplier"):
        settings_of(scaling__type="yarn", scaling__factor=4.0, scaling__yarn_log_multiplier=0.1)
    with pytest.raises(ModelError, match="Two rope scalings"):
        settings_of(factors=np.full(32, 2.0), scaling__factor=4.0)
