"""Attention over keys and values kept as 8-bit floats, as cases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from .cases import Case, attention_case

_CACHES = (1, 2)
"""Places among the operands."""


def float8_cases() -> Iterator[Case]:
    """Decoding sequences and chunks of Llama 3.1 8B."""
    for sequences, context in ((1, 2048), (16, 4100), (64, 4100)):
        yield _kept_as_float8(attention_case(f"decode {sequences} x {context}", [1] * sequences, context))
    for rows in (2048, 8192):
        yield _kept_as_float8(attention_case(f"chunk {rows}", [rows], rows))


def _kept_as_float8(case: Case) -> Case:
    def operands() -> list[Tensor]:
        made = case.operands()
        for at in _CACHES:
            made[at] = made[at].to(torch.float8_e4m3fn).view(torch.uint8)
        return made

    def reference(given: list[Tensor]) -> list[Tensor]:
        stand_for = [item.view(torch.float8_e4m3fn).bfloat16() if at in _CACHES else item for at, item in enumerate(given)]
        return case.reference(stand_for)

    # of what a decoding sequence moves, nearly all is keys and values
    moved = case.bytes / 2 if case.rows == case.logit_rows else case.bytes
    name = f"{case.name}, keys and values as 8-bit floats"
    return replace(case, name=name, operands=operands, reference=reference, rival=None, bytes=moved, kv_dtype="f8e4m3")
