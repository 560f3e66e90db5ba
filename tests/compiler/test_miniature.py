"""Miniatures: small, of the same code paths, with the model's layer kinds and patterns."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tokenspeed.compiler.frontends.repeats import fold
from tokenspeed.compiler.miniature import HEAD_DIM, WINDOW, _representatives, miniature
from tokenspeed.compiler.proof import TOKENS

from ..tiny_models import FAMILIES

LARGE: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 8192,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 28672,
    "vocab_size": 128256,
    "num_hidden_layers": 80,
    "eos_token_id": [128001, 128008],
}


def test_sizes_shrink_and_the_groups_of_heads_stay() -> None:
    small = miniature(LARGE, [0] * 80)
    assert small["num_attention_heads"] / small["num_key_value_heads"] == 8
    assert small["hidden_size"] == small["num_attention_heads"] * HEAD_DIM
    assert small["num_hidden_layers"] == 1 and small["eos_token_id"] == 0
    assert LARGE["hidden_size"] == 8192, "the model's own configuration is left alone"


def test_one_key_value_head_stays_one() -> None:
    small = miniature(LARGE | {"num_key_value_heads": 1}, [0])
    assert (small["num_key_value_heads"], small["num_attention_heads"]) == (1, 8)


def test_an_own_head_size_stays_one_and_windows_fit_the_proof() -> None:
    small = miniature(FAMILIES["mistral"], [0, 0, 0])
    assert small["head_dim"] == HEAD_DIM and small["sliding_window"] == WINDOW < min(TOKENS)
    assert not miniature(LARGE | {"sliding_window": None}, [0])["sliding_window"]


def test_lists_by_layer_are_cut_to_the_layers_kept() -> None:
    types = ["full_attention"] * 3 + ["sliding_attention"] * 5
    small = miniature(LARGE | {"num_hidden_layers": 8, "layer_types": types}, [0] * 3 + [1] * 5)
    assert small["layer_types"] == ["full_attention", "sliding_attention"] and small["num_hidden_layers"] == 2

    alternating = ["sliding_attention", "full_attention"] * 4
    small = miniature(LARGE | {"num_hidden_layers": 8, "layer_types": alternating}, [0, 1] * 4)
    assert small["layer_types"] == alternating[:4]


def test_fields_are_shrunk_under_the_names_of_their_model() -> None:
    small = miniature({"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12, "vocab_size": 50257}, [0] * 12)
    assert (small["n_embd"], small["n_head"], small["n_layer"]) == (2 * HEAD_DIM, 2, 1)


def test_factors_of_single_frequencies_fit_the_head_size() -> None:
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": [*range(48)], "rope_theta": 10000.0}
    for head_dim, frequencies in ((96, 8), (128, 6)):  # all of 96, three quarters of 128
        small = miniature(LARGE | {"head_dim": head_dim, "rope_parameters": rope}, [0])["rope_parameters"]
        assert small["long_factor"] == [*range(frequencies)] and len(small["short_factor"]) == frequencies
    assert len(rope["long_factor"]) == 48


@given(st.lists(st.integers(0, 2), min_size=1, max_size=5), st.integers(1, 9), st.lists(st.integers(0, 2), max_size=3))
def test_patterns_fold_in_the_miniature_as_in_the_model(pattern: list[int], count: int, rest: list[int]) -> None:
    """Kinds are numbered by first appearance, as tracing does."""
    order: dict[int, int] = {}
    kinds = [order.setdefault(kind, len(order)) for kind in pattern * count + rest]
    kept = [kinds[index] for index in _representatives(kinds)]
    assert set(kept) == set(kinds) and len(kept) <= 2 * len(kinds)
    patterns = {found.pattern for found in fold(kinds)}
    assert len(kept) <= 2 * sum(len(found.pattern) for found in fold(kinds))
    if len(fold(kinds)) == 1:
        assert {found.pattern for found in fold(kept)} == patterns


def test_each_kind_of_position_keeps_frequencies() -> None:
    rope = {"rope_theta": 1e4, "partial_rotary_factor": 0.25}
    plain = miniature(LARGE | {"rope_parameters": rope}, [0])
    assert plain["rope_parameters"] == rope
    sections = miniature(LARGE | {"rope_parameters": rope | {"mrope_section": [11, 11, 10]}, "head_dim": 256}, [0])
    assert sections["rope_parameters"]["mrope_section"] == [2, 2, 2]
    assert sections["rope_parameters"]["partial_rotary_factor"] * sections["head_dim"] == 2 * 6


def test_what_layers_have_of_their_own_moves_with_them() -> None:
    own = {"1": {"head_dim": 32}, "2": {"head_dim": 64}}
    small = miniature({**LARGE, "num_hidden_layers": 4, "per_layer_config": own}, [0, 0, 1, 1])
    assert small["per_layer_config"] == {1: {"head_dim": 64}}


def test_embeddings_as_wide_as_the_hidden_size_stay_so_and_others_do_not() -> None:
    same = miniature(LARGE | {"embedding_size": 8192}, [0])
    assert same["embedding_size"] == same["hidden_size"]
    other = miniature(LARGE | {"embedding_size": 1024}, [0])
    assert other["embedding_size"] != other["hidden_size"]


def test_layers_that_are_listed_by_index_stay_listed() -> None:
    kinds = [0, 0, 0, 1, 0, 0, 0, 0, 1, 0]
    small = miniature(LARGE | {"num_hidden_layers": 10, "cross_attention_layers": [3, 8]}, kinds)
    assert 0 < len(small["cross_attention_layers"]) < small["num_hidden_layers"]
