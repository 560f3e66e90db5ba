"""transformers' own model in eager mode: what a compiled model must compute."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from ..plans.errors import ModelError
from .frontends.causality import Mask, mask_inputs
from .frontends.frozen_rope import freeze_rope
from .frontends.text_part import model_maker
from .frontends.trace import quiet


def eager_logits(
    config: dict[str, Any], parameters: dict[str, Tensor], sequences: list[Tensor], context: int = 0, mask: Mask = "none"
) -> list[Tensor]:
    """Logits [tokens, vocabulary] in float32 of whole sequences of ids [tokens]: no positions are given, and no cache.

    `mask` is given: some models are only causal with one that hides no token, as in generation, and some only with a causal one.
    `parameters` are parameters and persistent buffers by name; a buffer that transformers fills with different numbers is a table
    which other values would contradict: it keeps them, and `parameters` are given them. `context` is what rope is fixed for, as
    in a trace.
    Raises ModelError when transformers cannot run its model.
    """
    try:
        with quiet():
            typed = AutoConfig.for_model(**copy.deepcopy(config))
            make = model_maker(config) or AutoModelForCausalLM.from_config
            model = make(typed, dtype=torch.float32, attn_implementation="eager").eval()
            parameters |= {name: table for name, table in _tables(model).items() if name in parameters}
            given = parameters | freeze_rope(model, context)
            for name, held in (*model.named_parameters(), *model.named_buffers()):
                if name in given:
                    held.copy_(given[name])
            return [model(input_ids=ids[None], use_cache=False, **_masks(mask, ids)).logits[0] for ids in sequences]
    except Exception as error:  # whatever the model's own code raises
        lines = str(error).strip().splitlines()
        raise ModelError(
            f"transformers cannot run its own {config.get('model_type')} model",
            where="proof on a miniature in float32",
            got=f"{type(error).__name__}: {lines[0][:300] if lines else ''}",
            fix="choose one of the model types that docs/models.md lists",
        ) from error


def _tables(model: torch.nn.Module) -> dict[str, Tensor]:
    return {
        name: held.clone() for name, held in model.named_buffers() if held.numel() > 1 and bool((held != held.flatten()[0]).any())
    }


def _masks(mask: Mask, ids: Tensor) -> dict[str, Tensor]:
    return mask_inputs(mask, torch.arange(len(ids))[None], torch.float32)
