"""Experts of a mixture as one operation of the trace: `tokenspeed::experts`, called through transformers' experts interface.

What a module's experts compute between their two projections is hidden in Python, so it is found out by trying it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from ...plans.errors import ModelError

EXPERTS_NAME = "tokenspeed"

_library = torch.library.Library("tokenspeed", "FRAGMENT")
_library.define(
    "experts(Tensor x, Tensor indices, Tensor weights, Tensor gate_up, Tensor down, Tensor? gate_up_bias, Tensor? down_bias, "
    "str activation, float alpha, float limit, bool transposed, bool interleaved) -> Tensor"
)


@dataclass(frozen=True)
class Gate:
    """What experts make of the first projection's columns: activation(gate) * up.

    `interleaved`: columns alternate between gate and up; else the first half is gate. `alpha` is used by "swiglu_clamped",
    `limit` by it and by "silu_clamped".
    """

    activation: str
    interleaved: bool
    alpha: float = 0.0
    limit: float = 0.0


def gated(columns: torch.Tensor, gate: Gate) -> torch.Tensor:
    """[rows, 2 I] -> [rows, I]. "swiglu_clamped" is gpt-oss's: (up + 1) * gate * sigmoid(alpha * gate), both clamped by limit.

    "silu_clamped" is silu(gate) * up, clamped likewise.
    """
    g, up = (columns[..., ::2], columns[..., 1::2]) if gate.interleaved else columns.chunk(2, dim=-1)
    if gate.activation == "swiglu_clamped":
        g, up = g.clamp(max=gate.limit), up.clamp(-gate.limit, gate.limit)
        return (up + 1) * g * torch.sigmoid(gate.alpha * g)
    if gate.activation == "silu_clamped":
        return functional.silu(g.clamp(max=gate.limit)) * up.clamp(-gate.limit, gate.limit)
    if gate.activation == "silu":
        return functional.silu(g) * up
    return functional.gelu(g, approximate="tanh" if gate.activation == "gelu_tanh" else "none") * up


@torch.library.register_fake("tokenspeed::experts")
def _experts_shape(x: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty_like(x)


@torch.library.impl("tokenspeed::experts", "CPU")
def _experts(
    x: torch.Tensor,
    indices: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    gate_up_bias: torch.Tensor | None,
    down_bias: torch.Tensor | None,
    activation: str,
    alpha: float,
    limit: float,
    transposed: bool,
    interleaved: bool,
) -> torch.Tensor:
    """Each row through its experts one by one, for the proof of raising."""
    if not transposed:
        gate_up, down = gate_up.transpose(1, 2), down.transpose(1, 2)
    gate = Gate(activation, interleaved, alpha, limit)
    out = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, weights.dtype))
    for row in range(len(x)):
        for expert, weight in zip(indices[row].tolist(), weights[row], strict=True):
            columns = x[row] @ gate_up[expert]
            made = gated(columns if gate_up_bias is None else columns + gate_up_bias[expert], gate) @ down[expert]
            out[row] += weight * (made if down_bias is None else made + down_bias[expert])
    return out.to(x.dtype)


def _hook(
    module: torch.nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    found: Gate | None = getattr(module, "tokenspeed_gate", None)
    if found is None:
        raise _unknown_gate(type(module).__name__)
    return torch.ops.tokenspeed.experts(
        hidden_states,
        top_k_index,
        top_k_weights,
        module.gate_up_proj,
        module.down_proj,
        module.gate_up_proj_bias if module.has_bias else None,
        module.down_proj_bias if module.has_bias else None,
        found.activation,
        found.alpha,
        found.limit,
        bool(module.is_transposed),
        found.interleaved,
    )


ALL_EXPERTS_FUNCTIONS.register(EXPERTS_NAME, _hook)


def recognise_experts(model: torch.nn.Module) -> None:
    """Find out what each module of experts computes and note it there, for the hook to read while it is traced."""
    for module in model.modules():
        if hasattr(module, "_apply_gate") and getattr(module, "has_gate", False):
            vars(module)["tokenspeed_gate"] = _recognised(module)


def _recognised(module: torch.nn.Module) -> Gate | None:
    numbers = [value for name, value in vars(module).items() if isinstance(value, float) and ("alpha" in name or "limit" in name)]
    return _gate_of(module._apply_gate, numbers)  # pyright: ignore[reportArgumentType]


def _gate_of(apply: Callable[[Tensor], Tensor], numbers: Sequence[float] = ()) -> Gate | None:
    """The known gate that gives what `apply` gives, on values past every clamp; `numbers` may be its alpha and limit."""
    columns = torch.linspace(-12, 12, 400, dtype=torch.float64).view(2, 200)[:, torch.randperm(200, generator=_generator())]
    try:
        expected = apply(columns)
    except (RuntimeError, AttributeError, TypeError):
        return None
    for candidate in _candidates(numbers):
        got = gated(columns, candidate)
        if got.shape == expected.shape and torch.allclose(got, expected, rtol=1e-9, atol=1e-12):
            return candidate
    return None


def call_experts(
    gate: Gate, x: Tensor, indices: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, transposed: bool
) -> Tensor:
    """The operation of the trace, for experts without biases.

    x: [rows, hidden]; indices, weights: [rows, chosen]; gate_up: [experts, 2 inner, hidden] and down: [experts, hidden, inner],
    the last two dimensions the other way round when `transposed`.
    """
    tensors = (x, indices, weights, gate_up, down, None, None)
    return torch.ops.tokenspeed.experts(*tensors, gate.activation, gate.alpha, gate.limit, transposed, gate.interleaved)


def known_gate(module: torch.nn.Module, apply: Callable[[Tensor], Tensor]) -> Gate:
    """The known gate that `apply`, of this module, is. Raises ModelError if it is none."""
    found = _gate_of(apply)
    if found is None:
        raise _unknown_gate(type(module).__name__)
    return found


def _unknown_gate(where: str) -> ModelError:
    return ModelError(
        "the experts of this mixture compute something that is not recognised yet",
        where=where,
        expected="down(activation(gate) * up), the activation one of silu, gelu, gelu_tanh, or silu clamped in one of two ways",
        fix="choose a model of one of the families in docs/models.md",
    )


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _candidates(numbers: Sequence[float]) -> list[Gate]:
    plain = [Gate(name, interleaved) for name in ("silu", "gelu", "gelu_tanh") for interleaved in (False, True)]
    clamped = [Gate("swiglu_clamped", side, alpha, limit) for side in (False, True) for alpha in numbers for limit in numbers]
    clamped += [Gate("silu_clamped", side, limit=limit) for side in (False, True) for limit in numbers]
    return plain + clamped
