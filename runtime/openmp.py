"""How OpenMP's threads wait for each other. To be called before torch is imported; no torch here."""

from __future__ import annotations

import os

# Spinning at a barrier on a busy machine keeps the very thread that is waited for from running. Decode of a 135M model in f32
# on 2 cores that other processes use too took 400 to 1150 ms a step with libgomp's default and 110 to 210 ms with this; with
# the cores nearly free, 10,000 was as fast as the default (47 ms) and 1,000 was 15 % slower.
_SPIN_COUNT = "5000"


def bound_spinning() -> None:
    """Bound libgomp's active waiting, unless the user has chosen (GOMP_SPINCOUNT, OMP_WAIT_POLICY)."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)
