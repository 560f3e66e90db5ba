"""All rules: one per way that Hugging Face code spells a `ts` operation, by subject in the files beside this one.

A rule gets the ATen operation at the root and the raiser; it returns the raised value, or None when it does not apply.
Hugging Face code works on [1, tokens, ...]; `ts` works on [rows, ...]. `Form` says how a raised value stood in ATen.
"""

from __future__ import annotations

from .activations import ACTIVATION_RULES
from .attention import ATTENTION_RULES
from .latent import LATENT_RULES
from .mixture import CAST_RULES, MIXTURE_RULES
from .norms import NORM_RULES
from .raised import Rule
from .rope import ROPE_RULES
from .structure import STRUCTURE_RULES
from .written import WRITTEN_RULES

RULES: tuple[Rule, ...] = (
    *NORM_RULES,
    *ROPE_RULES,
    *LATENT_RULES,
    *WRITTEN_RULES,
    *ATTENTION_RULES,
    *MIXTURE_RULES,
    *ACTIVATION_RULES,
    *STRUCTURE_RULES,
    *CAST_RULES,
)
"""Tried in this order at each ATen operation, the first that applies wins: what spans several operations comes first."""
