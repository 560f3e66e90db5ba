"""Rope settings of a GGUF file as Hugging Face configuration: base, linear and yarn scaling, llama3's factor tensor."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...plans.errors import ModelError
from .gguf_metadata import GgufMetadata

# llama.cpp multiplies yarn's magnitude by these; transformers derives it from the factor alone
_YARN_EXTRAS = {"attn_factor": 1.0, "yarn_log_multiplier": 0.0, "yarn_attn_factor": 1.0, "yarn_ext_factor": 1.0}

_NOISE, _SCALE = 1e-5, 8192.0  # of float32 factors; a usual context, to keep the fit well conditioned


def rope_settings(metadata: GgufMetadata, arch: str, head_dim: int, factors: np.ndarray | None) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` for config.json; `factors` is the tensor rope_freqs.weight ([head_dim / 2]) if any.

    Raises ModelError for a scaling that no transformers rope type reproduces.
    """
    theta = metadata.get(f"{arch}.rope.freq_base", float, 10000.0)
    scaling = _declared_scaling(metadata, arch)
    if factors is not None and not np.all(factors == 1.0):
        if scaling is not None:
            raise ModelError(
                "Two rope scalings at once are not supported.",
                where=f"{metadata.path}, tensor rope_freqs.weight and key {arch}.rope.scaling.type",
                expected="one of them",
            )
        scaling = llama3_scaling(factors, theta, head_dim, str(metadata.path))
    return {"rope_theta": theta, "rope_scaling": scaling}


def _declared_scaling(metadata: GgufMetadata, arch: str) -> dict[str, Any] | None:
    prefix = f"{arch}.rope.scaling."
    # the key without ".scaling" is how old files spell linear scaling
    factor = metadata.get(f"{prefix}factor", float, metadata.get(f"{arch}.rope.scale_linear", float, 1.0))
    kind = metadata.get(f"{prefix}type", str, "linear")
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise ModelError(
            "This rope scaling is not supported from GGUF.",
            where=f"{metadata.path}, key {prefix}type",
            expected="none, linear, yarn",
            got=kind,
        )
    for name, neutral in _YARN_EXTRAS.items():
        if metadata.get(prefix + name, float, neutral) != neutral:
            raise ModelError(
                "This yarn scaling is not what transformers computes.",
                where=f"{metadata.path}, key {prefix}{name}",
                expected=str(neutral),
                got=str(metadata.values[prefix + name]),
            )
    original = metadata.get(f"{prefix}original_context_length", int, metadata.require(f"{arch}.context_length", int))
    scaling: dict[str, Any] = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    for name in ("beta_fast", "beta_slow"):
        value = metadata.get(f"{prefix}yarn_{name}", float)
        if value is not None:
            scaling[name] = value
    return scaling


def llama3_scaling(factors: np.ndarray, theta: float, head_dim: int, where: str) -> dict[str, Any]:
    """The llama3 rope scaling that divides inverse frequencies by `factors`; the converter wrote only its result.

    For wavelength w between two thresholds, 1/factor(w) - 1/F is proportional to C/w - low, so a line through those
    points gives C (original context) and high once low is set to 1 (the three only matter up to a common scale).
    Formula: `_compute_llama3_parameters` of transformers, from Llama 3.1's reference code.
    Raises ModelError when no such scaling gives these factors.
    """
    factors = np.asarray(factors, dtype=np.float64)
    if factors.shape != (head_dim // 2,) or not np.all(np.isfinite(factors)) or factors.min() < 1.0:
        raise _not_llama3(where, f"{list(factors.shape)} factors from {factors.min()} to {factors.max()}")
    wavelengths = 2 * math.pi * theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    largest = _neat(float(factors.max()))
    for low, high, context in ((1.0, 4.0, 8192), *_fitted(factors, wavelengths, largest)):
        expected = _llama3_factors(wavelengths, largest, low, high, context)
        if np.allclose(expected, factors, rtol=1e-5, atol=0):
            return {
                "rope_type": "llama3",
                "factor": largest,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": context,
            }
    raise _not_llama3(where, f"factors from 1 to {largest:g} of another form")


def _fitted(factors: np.ndarray, wavelengths: np.ndarray, largest: float) -> list[tuple[float, float, int]]:
    """(low, high, context) from the factors between the thresholds, clear of float32 noise at both ends."""
    between = (factors > 1.0 + _NOISE) & (factors < largest * (1 - _NOISE))
    if np.count_nonzero(between) < 2:
        return []
    smooth = (1 / factors[between] - 1 / largest) / (1 - 1 / largest)
    slope, intercept = np.polyfit(_SCALE / wavelengths[between], smooth, 1)
    if intercept >= 0:
        return []
    high = 1 - 1 / float(intercept)
    exact = _SCALE * float(slope) * (high - 1)
    context = max(1, round(exact))
    # the configuration wants a whole number; low and high follow it
    return [(_neat(context / exact), _neat(high * context / exact), context)]


def _neat(value: float) -> float:
    """Six digits where that is the same number up to float32 noise: 8.0 rather than 8.000000954."""
    short = float(f"{value:.6g}")
    return short if math.isclose(short, value, rel_tol=1e-6) else value


def _llama3_factors(wavelengths: np.ndarray, factor: float, low: float, high: float, context: int) -> np.ndarray:
    smooth = np.clip((context / wavelengths - low) / (high - low), 0.0, 1.0)
    return 1 / ((1 - smooth) / factor + smooth)


def _not_llama3(where: str, got: str) -> ModelError:
    return ModelError(
        "The rope factors of this file are not those of llama3 scaling.",
        where=f"{where}, tensor rope_freqs.weight",
        expected="head_dim / 2 factors that some llama3 rope_scaling gives",
        got=got,
        fix="use the Hugging Face directory of this model",
    )
