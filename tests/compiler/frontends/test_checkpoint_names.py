"""Names and cuts of parameters in checkpoints, against the tensors that transformers itself saves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenspeed.compiler.frontends.checkpoint_names import CheckpointNames, checkpoint_names
from tokenspeed.plans.errors import ModelError
from tokenspeed.plans.recipe import Concat, Recipe, Slice, Source, Stack, Transpose, sources
from transformers import PreTrainedModel
from transformers.core_model_loading import (
    Chunk,
    Concatenate,
    Interleave,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    revert_weight_conversion,
)
from transformers.core_model_loading import Transpose as Swap

from ...tiny_models import FAMILIES, MIXTURES, build

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 12,
    "vocab_size": 32,
}
MODELS: dict[str, dict[str, Any]] = {
    "qwen3_moe": MIXTURES["qwen3_moe"],
    "mixtral": MIXTURES["mixtral"],
    "phimoe": SMALL | {"model_type": "phimoe", "num_local_experts": 3},
    "granitemoe": SMALL | {"model_type": "granitemoe", "num_local_experts": 3},
    "gpt_oss": MIXTURES["gpt_oss"],
    "deepseek_v3": MIXTURES["deepseek_v3"],
    "llama": FAMILIES["llama"],
}


def value(recipe: Recipe, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    match recipe:
        case Source():
            return tensors[recipe.name]
        case Stack():
            return torch.stack([value(part, tensors) for part in recipe.parts], recipe.dimension)
        case Concat():
            return torch.cat([value(part, tensors) for part in recipe.parts], recipe.dimension)
        case Transpose():
            return value(recipe.of, tensors).permute(recipe.permutation)
        case Slice():
            return value(recipe.of, tensors).narrow(recipe.dimension, recipe.start, recipe.stop - recipe.start)
        case _:
            raise AssertionError(recipe)


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_is_made_from_what_transformers_saves(name: str) -> None:
    model: PreTrainedModel = build(MODELS[name])
    names = checkpoint_names(model)
    saved = revert_weight_conversion(model, dict(model.state_dict()))
    used: set[str] = set()
    for parameter, expected in model.state_dict().items():
        parts = names.parts(parameter, expected.shape)
        assert torch.equal(value(parts.recipe, saved), expected), parameter
        assert {tensor: tuple(saved[tensor].shape) for tensor in parts.shapes} == parts.shapes
        used |= {*sources(parts.recipe)}
    assert used == set(saved)


def test_templates_stay_templates() -> None:
    names = checkpoint_names(build(MODELS["mixtral"]))
    parts = names.parts("model.layers.{i+1}.mlp.experts.down_proj", (4, 64, 96))
    expected = [f"model.layers.{{i+1}}.block_sparse_moe.experts.{expert}.w2.weight" for expert in range(4)]
    assert [*sources(parts.recipe)] == expected and parts.shapes == dict.fromkeys(expected, (64, 96))


def made(*operations: Any, given: list[str], target: list[str]) -> CheckpointNames:
    return CheckpointNames((WeightConverter(given, target, [*operations]).reverse_transform(),))


def test_parameters_joined_in_a_checkpoint_are_cut_from_it() -> None:
    names = made(Chunk(dim=0), given=["a.qkv.weight"], target=["a.q.weight", "a.k.weight"])
    assert names.parts("l.a.k.weight", (3, 5)).recipe == Slice(Source("l.a.qkv.weight"), 0, 3, 6)
    assert names.parts("l.a.k.weight", (3, 5)).shapes == {"l.a.qkv.weight": (6, 5)}


def test_transposed_and_renamed() -> None:
    names = made(Swap(dim0=0, dim1=1), given=["a.w"], target=["a.weight"])
    names = CheckpointNames(names.converters, (WeightRenaming("old", "new").reverse_transform(),))
    parts = names.parts("new.a.weight", (3, 5))
    assert parts.recipe == Transpose(Source("old.a.w"), (1, 0)) and parts.shapes == {"old.a.w": (5, 3)}


@pytest.mark.parametrize(
    "names",
    [
        made(Interleave(dim=0), given=["b"], target=["a.weight"]),
        made(Swap(dim0=0, dim1=1, check_dims=True), given=["b"], target=["a.weight"]),
        made(MergeModulelist(dim=0), Concatenate(dim=0), given=["x.*.b", "y.*.b", "z.*.b"], target=["a.weight"]),
    ],
)
def test_what_is_not_known_is_refused_by_name(names: CheckpointNames) -> None:
    with pytest.raises(ModelError) as refused:
        names.parts("l.{i}.a.weight", (4, 2))
    assert refused.value.where == "l.{i}.a.weight" and refused.value.fix


def test_tensors_kept_in_float32_are_known() -> None:
    names = CheckpointNames(single=("e_score_correction_bias",))
    assert names.is_single("model.layers.3.mlp.gate.e_score_correction_bias")
    assert not names.is_single("model.layers.3.mlp.gate.weight")


def test_convolutions_of_unequal_parts_are_joined_from_them() -> None:
    heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 4, "linear_value_head_dim": 7}
    with torch.device("meta"):
        model: PreTrainedModel = build(
            SMALL
            | {"model_type": "olmo_hybrid", "pad_token_id": 0, "layer_types": ["linear_attention", "full_attention"]}
            | heads
        )
    shape = model.state_dict()["model.layers.0.linear_attn.conv1d.weight"].shape
    parts = checkpoint_names(model).parts("model.layers.{i}.linear_attn.conv1d.weight", shape)
    assert isinstance(parts.recipe, Concat) and shape[0] == 30  # which has three equal parts too
    sizes = {"q": 8, "k": 8, "v": 14}
    assert parts.shapes == {f"model.layers.{{i}}.linear_attn.{name}_conv1d.weight": (size, 1, 4) for name, size in sizes.items()}
