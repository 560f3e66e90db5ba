"""Checkpoints of 8-bit floats: what a configuration says of them, and the scales of a tensor.

Read are matrices of e4m3 with a scale for each block, each row or the whole tensor, in a tensor of its own beside the matrix:
`weight_scale_inv` (as DeepSeek-V3's) or `weight_scale` (compressed-tensors, FBGEMM, and others). Both are factors of the bits.
Scales of activations are not read: those are taken as they are, or scaled by what they hold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, NoReturn

from ...plans.checkpoint import CheckpointTensor
from ...plans.errors import ModelError
from ...plans.recipe import Scales, Source

ENCODING = "F8_E4M3"
SUFFIXES = ("_scale_inv", "_scale")
"""Behind the name of a matrix, that of its scales."""

_HEADS = ("lm_head",)
_BLOCK = (128, 128)

Granularity = Literal["block", "row", "tensor"]


@dataclass(frozen=True)
class Float8:
    """What a configuration says of matrices in 8-bit floats: how scales are called, what each stands for, what has none.

    `block` are rows and columns of one scale where `granularity` is block. `others` are names of modules, their beginnings, or
    patterns after "re:".
    """

    suffix: str
    granularity: Granularity
    block: tuple[int, int]
    others: tuple[str, ...]

    def holds(self, tensor: str) -> bool:
        """Whether a matrix is one of them, by its name alone."""
        module = tensor.removesuffix(".weight")
        return tensor.endswith(".weight") and not any(_names(pattern, module) for pattern in (*_HEADS, *self.others))

    def scales(self, tensor: str, shape: Sequence[int]) -> Scales:
        """Those of a matrix that is one of them, as the configuration says."""
        rows, columns = {"block": self.block, "row": (1, shape[-1]), "tensor": (shape[-2], shape[-1])}[self.granularity]
        return Scales(Source(tensor + self.suffix), rows, columns)

    def scales_in(self, tensors: Mapping[str, CheckpointTensor], tensor: str, shape: Sequence[int]) -> Scales:
        """Those that a checkpoint has of a matrix in 8-bit floats. Raises ModelError for none, or ones of an unknown kind."""
        found = next((tensor + suffix for suffix in SUFFIXES if tensor + suffix in tensors), None)
        if found is None:
            raise ModelError(
                "A matrix of 8-bit floats has no scales.",
                where=tensor,
                expected=" or ".join(tensor + suffix for suffix in SUFFIXES),
                got=f"{len(tensors)} other tensors",
                fix="check that no shard of the checkpoint is missing",
            )
        count, rows, columns = prod(tensors[found].shape), shape[-2], shape[-1]
        of_block = prod(-(-size // block) for size, block in zip((rows, columns), self.block, strict=True))
        others = prod(shape[:-2])
        kinds = {others: (rows, columns), others * rows: (1, columns)}
        if self.granularity == "block":
            kinds[others * of_block] = self.block
        if count not in kinds:
            raise ModelError(
                "Scales of 8-bit floats are not one for each block, each row or the whole matrix.",
                where=found,
                expected=f"{' or '.join(map(str, kinds))} numbers for {list(shape)}",
                got=f"{list(tensors[found].shape)}",
                fix="check that config.json and the weights are of the same model",
            )
        return Scales(Source(found), *kinds[count])


def read_float8(settings: Any, where: str) -> Float8:
    """From `quantization_config`. Raises ModelError for what is not 8-bit floats with scales of this kind."""
    method = settings.get("quant_method", "unnamed") if isinstance(settings, dict) else None
    if method == "fp8":
        return _fine_grained(settings)
    if method == "fbgemm_fp8":
        return Float8("_scale", "row", _BLOCK, _texts(settings.get("modules_to_not_convert")))
    if method == "compressed-tensors":
        return _compressed(settings, where)
    _refuse(f"quant_method {method}" if method else repr(settings), where)


def _fine_grained(settings: dict[str, Any]) -> Float8:
    """DeepSeek's and transformers' own; without a block, as quantisers write it that scale whole tensors."""
    others = _texts(settings.get("modules_to_not_convert")) + _texts(settings.get("ignored_layers"))
    block = settings.get("weight_block_size")
    if block is None:
        return Float8("_scale", "tensor", _BLOCK, others)
    rows, columns = block
    return Float8("_scale_inv", "block", (int(rows), int(columns)), others)


def _compressed(settings: dict[str, Any], where: str) -> Float8:
    groups = settings.get("config_groups") or {}
    kinds: set[tuple[Granularity, tuple[int, int]]] = set()
    for group in groups.values():
        weights = group.get("weights") or {}
        if (weights.get("type"), weights.get("num_bits")) != ("float", 8):
            _refuse(f"compressed-tensors of {weights.get('num_bits')}-bit {weights.get('type')}", where)
        granularity = {"channel": "row", "tensor": "tensor", "block": "block"}.get(str(weights.get("strategy")))
        if granularity is None:
            _refuse(f"compressed-tensors with a scale for each {weights.get('strategy')}", where)
        rows, columns = weights.get("block_structure") or _BLOCK
        kinds.add((granularity, (int(rows), int(columns))))  # pyright: ignore[reportArgumentType]
    if len(kinds) != 1:
        _refuse(f"compressed-tensors of {len(kinds)} kinds", where)
    ((granularity, block),) = kinds
    return Float8("_scale", granularity, block, _texts(settings.get("ignore")))


def _names(pattern: str, module: str) -> bool:
    """Whether a configuration's name of modules is this one's, that of one around it, or its last part."""
    if pattern.startswith("re:"):
        return re.match(pattern.removeprefix("re:"), module) is not None
    return module == pattern or module.startswith(f"{pattern}.") or module.endswith(f".{pattern}")


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()


def _refuse(got: str, where: str) -> NoReturn:
    raise ModelError(
        "Quantized Hugging Face checkpoints of this kind are not read.",
        where=f"{where}, field quantization_config",
        expected="weights in F32, F16 or BF16, or in 8-bit floats (quant_method fp8, fbgemm_fp8, or compressed-tensors of those)",
        got=got,
        fix="use the unquantized checkpoint, or a GGUF file of the same model",
    )
