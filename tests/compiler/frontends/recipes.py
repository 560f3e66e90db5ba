"""A plain interpreter of the recipe steps that frontends make."""

from __future__ import annotations

import gguf
import gguf.quants
import numpy as np
import torch
from tokenspeed.plans.checkpoint import Checkpoint
from tokenspeed.plans.recipe import Cast, Dequantize, Recipe, Source, UnpermuteRope

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def value_of(recipe: Recipe, checkpoint: Checkpoint) -> torch.Tensor:
    match recipe:
        case Source(name):
            tensor = checkpoint.tensors[name]
            raw = torch.frombuffer(bytearray(checkpoint.read(name)), dtype=STORED[tensor.encoding])
            return raw.reshape(tensor.shape)
        case Dequantize(Source(name)):
            tensor = checkpoint.tensors[name]
            kind = gguf.GGMLQuantizationType[tensor.encoding]
            raw = np.frombuffer(checkpoint.read(name), np.uint8).reshape(*tensor.shape[:-1], -1)
            return torch.from_numpy(gguf.quants.dequantize(raw, kind).reshape(tensor.shape).copy())
        case UnpermuteRope(of, heads):
            value = value_of(of, checkpoint)
            return value.reshape(heads, -1, 2, *value.shape[1:]).transpose(1, 2).reshape(value.shape)
        case Cast(of, dtype):
            return value_of(of, checkpoint).to(DTYPES[dtype])
    raise AssertionError(recipe)
