"""Layers whose weights are in blocks, as cases: made-up planes, and what they stand for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from tokenspeed.plans.weight_layout import BLOCKS, chunk_of, planes, stored_bytes
from torch import Tensor

from .cases import HIDDEN, LAYERS, VOCABULARY, Case, linear_case
from .experts_case import experts_case

TYPES = ("q8_0", "q4_0", "q4_1", "e4m3_128")


def block_cases() -> Iterator[Case]:
    """Layers of Llama 3.1 8B in each block type."""
    for stored in TYPES:
        for rows in (1, 16, 64, 128, 2048):
            for name, (columns, inner) in LAYERS.items():
                yield _linear(name, rows, columns, inner, stored)
        yield _linear("lm_head", 64, VOCABULARY, HIDDEN, stored)
    for rows in (1, 16, 64, 2048):
        yield _experts(rows, 256, 8, 7168, 256, "e4m3_128")


def _experts(rows: int, experts: int, top_k: int, hidden: int, inner: int, stored: str) -> Case:
    """What one of eight devices has of the experts of a layer of DeepSeek V3."""
    plain = experts_case(rows, experts, top_k, hidden, inner)
    shapes = ((experts, 2 * inner, hidden), (experts, hidden, inner))

    def operands() -> list[Tensor]:
        x, indices, weights, *_, out = plain.operands()
        return [x, indices, weights, *(_made_up(count * rows, size, stored) for count, rows, size in shapes), out]

    def reference(given: list[Tensor]) -> list[Tensor]:
        weights = zip(given[3:5], shapes, strict=True)
        both = (decoded(data, count * rows, size, stored).view(count, rows, size) for data, (count, rows, size) in weights)
        return plain.reference([*given[:3], *both, given[5]])

    elements, size = BLOCKS[stored]
    activations = 2.0 * 2 * rows * hidden
    moved = (plain.bytes - activations) * size / (2 * elements) + activations
    name = f"{plain.name}, blocks of {stored}"
    return replace(plain, name=name, operands=operands, reference=reference, bytes=moved, stored=dict.fromkeys((3, 4), stored))


def _linear(name: str, rows: int, columns: int, inner: int, stored: str) -> Case:
    plain = linear_case(name, rows, columns, inner)
    size = stored_bytes((columns, inner), stored, "planes")

    def operands() -> list[Tensor]:
        x, _, out = plain.operands()
        return [x, _made_up(columns, inner, stored), out]

    def reference(given: list[Tensor]) -> list[Tensor]:
        return [given[0].double() @ decoded(given[1], columns, inner, stored).T]

    return Case(
        f"{plain.name}, blocks of {stored}",
        rows,
        rows,
        plain.types,
        plain.line,
        operands,
        1,
        (1,),
        reference,
        None,
        size + 2.0 * rows * (columns + inner),
        plain.operations,
        stored={1: stored},
    )


def _made_up(columns: int, inner: int, stored: str) -> Tensor:
    """Any codes, scales up to 0.01, or those of 8-bit floats up to 0.0001."""
    shape, blocks = (columns, inner), columns * inner // BLOCKS[stored][0]
    data = torch.randint(0, 256, (stored_bytes(shape, stored, "planes"),), dtype=torch.uint8)
    if stored == "e4m3_128":
        data[data & 127 == 127] = 126  # what is no number
    for kind, width, offset in planes(shape, stored)[1:]:
        scales = torch.rand(blocks) * (0.0001 if kind == "f32" else 0.01)
        data[offset : offset + width * blocks] = scales.to(_NUMBERS[kind]).view(torch.uint8)
    return data


_NUMBERS = {"f16": torch.float16, "f32": torch.float32}


def decoded(data: Tensor, columns: int, inner: int, stored: str) -> Tensor:
    """What planes stand for, in float64."""
    (_, width, _), *numbers = planes((columns, inner), stored)
    blocks, chunk = columns * inner // BLOCKS[stored][0], chunk_of(inner, stored)
    if stored == "e4m3_128":
        codes = data[: width * blocks].view(blocks, chunk // 2, 2).transpose(1, 2).reshape(blocks, chunk)
        scale = data[width * blocks :].view(torch.float32).double()[:, None]
        return (codes.view(torch.float8_e4m3fn).double() * scale).view(columns, inner)
    halfwords = data[: width * blocks].view(torch.int16).int()
    bits = 8 if stored == "q8_0" else 4
    codes = torch.stack([(halfwords >> shift) & ((1 << bits) - 1) for shift in range(0, 16, bits)])
    codes = codes.view(len(codes), -1, chunk // len(codes)).transpose(0, 1).reshape(blocks, 32).double()
    if stored == "q8_0":
        codes = torch.where(codes > 127, codes - 256, codes)
    scale, *minimum = (data[at : at + 2 * blocks].view(torch.float16).double()[:, None] for _, _, at in numbers)
    values = scale * (codes - 8 if stored == "q4_0" else codes)
    return (values + minimum[0] if minimum else values).view(columns, inner)
