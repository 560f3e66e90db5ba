"""Checkpoints with matrices in 8-bit floats, made of plain ones as quantisers make them, and the values they stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

ROUTER = "mlp.gate.weight"
BLOCK = (16, 32)
"""Rows and columns of a scale, small enough for tiny models."""

SETTINGS: dict[str, dict[str, Any]] = {
    "block": {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": list(BLOCK)},
    "row": {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}},
        "ignore": ["lm_head", "re:.*mlp.gate$"],
    },
    "tensor": {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]},
}
"""`quantization_config` by what a scale stands for."""


def rounded(directory: Path, kind: str, block: tuple[int, int] = BLOCK) -> Path:
    """A copy of a model directory whose matrices are in 8-bit floats; its own become the values of these."""
    target = directory.with_name(f"{directory.name}-{kind}")
    target.mkdir()
    plain = load_file(directory / "model.safetensors")
    stored: dict[str, torch.Tensor] = {}
    for name, value in plain.items():
        if value.ndim != 2 or any(part in name for part in ("embed_tokens", "lm_head", "norm")) or name.endswith(ROUTER):
            stored[name] = value
            continue
        rows, columns = {"block": block, "row": (1, value.shape[1]), "tensor": tuple(value.shape)}[kind]
        scales = torch.nn.functional.max_pool2d(value.abs()[None], (rows, columns), ceil_mode=True)[0] / 448.0
        wide = scales.repeat_interleave(rows, 0)[: value.shape[0]].repeat_interleave(columns, 1)[:, : value.shape[1]]
        stored[name] = (value / wide).to(torch.float8_e4m3fn)
        plain[name] = stored[name].float() * wide
        suffix = "_scale_inv" if kind == "block" else "_scale"
        stored[name + suffix] = scales.reshape(()) if kind == "tensor" else scales
    save_file(plain, directory / "model.safetensors", {"format": "pt"})
    save_file(stored, target / "model.safetensors", {"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    settings = SETTINGS[kind] | ({"weight_block_size": list(block)} if kind == "block" else {})
    (target / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return target
