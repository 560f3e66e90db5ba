"""A sample of the mutations of kv_mutations.py, and that its list of exceptions is of mutations there are."""

from __future__ import annotations

from random import Random

from .kv_equivalents import EQUIVALENT
from .kv_mutations import caught_by, mutations, require_sound

SAMPLE = 40


def test_a_sample_of_spoilt_code_is_caught():
    require_sound(seeds=5, models=False)
    every = mutations()
    assert EQUIVALENT.keys() <= {mutation.name for mutation in every}
    visible = [mutation for mutation in every if mutation.name not in EQUIVALENT]
    tried = Random(20261129).sample(visible, SAMPLE)
    missed = [mutation.name for mutation in tried if not caught_by(mutation, seeds=5, models=False)]
    assert not missed
