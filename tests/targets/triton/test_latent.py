"""Latent attention, interpreted: the cache's write, and rows of decoding sequences and of chunks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenspeed.ir import module as modules
from tokenspeed.runtime.functions.base import Operands
from tokenspeed.runtime.functions.context import Context
from tokenspeed.runtime.functions.registry import lookup
from tokenspeed.targets.triton.latent import latent_attention

from ...ir.modules import step
from .compared import SETTING, Array
from .interpreter import Interpreter

HEADS, NOPE, VALUES, RANK, TURNED, TOKENS = 3, 8, 6, 20, 4, 4
SCALE = 0.3


@pytest.mark.parametrize(
    ("rows_of", "lengths", "rows", "logit_rows"),
    [([1, 1, 1], [1, 31, 17], 4, 4), ([1, 1, 5, 2], [9, 3, 26, 2], 12, 8)],
)
def test_latent_attention(interpreter: Interpreter, rows_of: list[int], lengths: list[int], rows: int, logit_rows: int) -> None:
    generator = np.random.default_rng(4)
    shapes = {"q_nope": (HEADS, NOPE), "q_rope": (HEADS, TURNED), "latent": (RANK,), "k_rope": (TURNED,)}
    types = [f"tensor<?x{'x'.join(map(str, shape))}xf32>" for shape in shapes.values()]
    types.append(f"tensor<{HEADS * (NOPE + VALUES)}x{RANK}xf32>")
    names = ", ".join(f"%a{at}" for at in range(5))
    lines = [f'%a{at} = "ts.input"() {{sym = "a{at}"}} : () -> {kind}' for at, kind in enumerate(types)]
    attributes = f'layer = "0", scale = {SCALE} : f64'
    out_type = f"tensor<?x{HEADS}x{VALUES}xf32>"
    lines.append(f'%r = "ts.latent_attention"({names}) {{{attributes}}} : ({", ".join(types)}) -> {out_type}')
    with modules.context():
        module = modules.parse(step([*lines, "return"]))
        operation = [view.operation for view in modules.step_block(module).operations][-2]
        template = latent_attention(operation, SETTING)

    def normal(*shape: int) -> Array:
        return generator.standard_normal(shape).astype(np.float32)

    q_nope, q_rope, latent, k_rope = (normal(rows, *shape) for shape in shapes.values())
    kv_b = normal(HEADS * (NOPE + VALUES), RANK)
    blocks = [-(-length // TOKENS) for length in lengths]
    numbers = generator.permutation(sum(blocks) + 1)
    cache = normal(sum(blocks) + 1, TOKENS, 1, RANK + TURNED)
    tables = np.zeros((SETTING.max_sequences, SETTING.blocks_per_sequence), np.int32)
    slots = np.full(rows, -1, np.int64)
    row = 0
    for at, (count, length) in enumerate(zip(blocks, lengths, strict=True)):
        tables[at, :count] = numbers[sum(blocks[:at]) :][:count]
        for position in range(length - rows_of[at], length):
            slots[row] = tables[at, position // TOKENS] * TOKENS + position % TOKENS
            row += 1
    starts = np.zeros(SETTING.max_sequences + 1, np.int32)
    starts[: len(rows_of) + 1] = np.concatenate(([0], np.cumsum(rows_of)))
    contexts = np.zeros(SETTING.max_sequences, np.int32)
    contexts[: len(lengths)] = lengths
    counts = np.array([sum(rows_of), rows_of.count(1), len(rows_of), len(rows_of)], np.int32)
    inputs = [starts, contexts, tables, counts]
    out, wanted = np.zeros((rows, HEADS, VALUES), np.float32), torch.zeros(rows, HEADS, VALUES)
    kept = torch.from_numpy(cache.copy())

    operands = [q_nope, q_rope, kv_b, latent, k_rope, slots, cache, *inputs, out]
    interpreter.run(template, operands, {"rows": rows, "logit_rows": logit_rows})

    stored = [torch.from_numpy(item) for item in (latent, k_rope, slots)]
    lookup("latent_kv_write")(Operands("latent_kv_write", stored, [kept], {}, Context()))()
    given = [torch.from_numpy(item) for item in (q_nope, q_rope, kv_b)]
    given += [kept, *map(torch.from_numpy, inputs)]
    lookup("latent_attention")(Operands("latent_attention", given, [wanted], {"scale": SCALE}, Context()))()
    np.testing.assert_array_equal(cache, kept.numpy())
    real = sum(rows_of)
    np.testing.assert_allclose(out[:real], wanted.numpy()[:real], rtol=2e-5, atol=2e-5)
