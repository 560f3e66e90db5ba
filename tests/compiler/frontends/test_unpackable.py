"""Model types that are refused by name."""

from __future__ import annotations

import pytest
from tokenspeed.compiler.frontends.trace import trace
from tokenspeed.compiler.frontends.unpackable import _UNPACKABLE, refuse_unpackable
from tokenspeed.plans.errors import ModelError
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def test_a_type_is_refused_with_its_reason_before_it_is_built() -> None:
    with pytest.raises(ModelError, match="packed rows") as caught:
        trace({"model_type": "musicgen"}, "f32")
    assert "several codebooks" in (caught.value.got or "")


def test_types_are_those_of_the_installed_transformers_and_others_pass() -> None:
    assert _UNPACKABLE.keys() <= MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys()
    refuse_unpackable("llama")
