"""What rounding a plan's weights costs: the same program on the same text, once as the plan stores them, once unrounded."""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..plans.reader import Plan
from .executor import load_executor
from .fixed_batch import Rows, equal_places, fixed_batch
from .tokenizer import Tokenizer

MAX_TOKENS = 512
TEXT = """\
The harbour was quiet when the last ferry came in. Two men carried crates of oranges up the stone steps, a dog slept under
the awning of the bakery, and somewhere behind the church a radio played an old song about leaving and coming home again.
Anna counted the coins in her pocket, bought a small loaf, and sat down on the wall to read the letter for the third time.
It said that the house could be sold in spring, that the roof had been mended, and that the garden, although nobody had
looked after it for years, was full of roses.

A cache keeps results that were expensive to compute. When it is full, something must be removed, and the question is what.
Removing the entry that was used least recently is simple and often good, because what was needed a moment ago is likely to
be needed again. It fails when a program walks through more data than the cache can hold: each entry is thrown away just
before its next use. Measuring how often that happens costs little, and shows when a larger cache, or another rule, pays.

def mean(values):
    total = 0.0
    for value in values:
        total += value
    return total / len(values)

Water boils at 100 degrees Celsius at sea level, and at about 95 degrees in a town that lies 1,500 metres above it. The year
has 365 days, a leap year 366; 2000 was a leap year, 1900 was not. If a train leaves at 9:40 and needs two hours and thirty
five minutes, it arrives at 12:15.
"""


class Accuracy(msgspec.Struct, frozen=True):
    """Over `tokens` positions of a text: differences of logits, share of positions whose likeliest token is the same, and the
    perplexity of the text (None when its tokens mean nothing, for want of a tokenizer)."""

    tokens: int
    largest_difference: float
    mean_difference: float
    top_1_agreement: float
    perplexity: float | None
    unrounded_perplexity: float | None

    def lines(self) -> list[str]:
        """As a person reads it."""
        found = [
            f"rounded weights, over {self.tokens} tokens: largest logit difference {self.largest_difference:.3g}, "
            f"mean {self.mean_difference:.3g}, top-1 agreement {self.top_1_agreement:.1%}"
        ]
        if self.perplexity is not None and self.unrounded_perplexity is not None:
            found.append(f"perplexity {self.perplexity:.3f}, with unrounded weights {self.unrounded_perplexity:.3f}")
        return found


def measure_accuracy(plan: Plan, weights: str | None, report: Callable[[str], None]) -> Accuracy:
    """Run the text twice. Raises WeightsError when the plan's weights are not at hand."""
    tokens, meaningful = _tokens(plan)
    report("running a text with the weights as stored")
    stored = _logits(plan, weights, tokens, exact=False)
    report("running it with unrounded weights")
    exact = _logits(plan, weights, tokens, exact=True)
    difference = np.abs(stored - exact)
    return Accuracy(
        tokens=len(tokens),
        largest_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        top_1_agreement=float((stored.argmax(1) == exact.argmax(1)).mean()),
        perplexity=_perplexity(stored, tokens) if meaningful else None,
        unrounded_perplexity=_perplexity(exact, tokens) if meaningful else None,
    )


def _tokens(plan: Plan) -> tuple[list[int], bool]:
    """The text's tokens and true, or made-up tokens and false."""
    manifest = plan.manifest
    most = min(MAX_TOKENS, manifest.model.max_context)
    if manifest.tokenizer is None:
        return np.random.Generator(np.random.Philox(key=7)).integers(0, manifest.model.vocabulary, most).tolist(), False
    tokenizer = Tokenizer(bytes(plan.entry(manifest.tokenizer.entry)), manifest.model.begin_token)
    return tokenizer.encode(TEXT, add_begin_token=manifest.model.add_begin_token)[:most], True


def _logits(plan: Plan, weights: str | None, tokens: list[int], exact: bool) -> NDArray[np.float32]:
    manifest = plan.manifest
    chunk = min(manifest.schedule.max_sequences, manifest.schedule.prefill_chunk)
    blocks = -(-len(tokens) // manifest.kv.block_tokens)
    executor = load_executor(plan, weights, None, lambda _phase: None, exact_weights=exact)
    try:
        starts = range(0, len(tokens), chunk)
        parts = [Rows(0, start, tokens[start : start + chunk]) for start in starts]
        windows = equal_places(manifest.kv, 1)
        batches = [fixed_batch([part], blocks, manifest.kv.block_tokens, all_logits=True, windows=windows) for part in parts]
        return np.concatenate([executor.logits_for(batch) for batch in batches])
    finally:
        executor.close()


def _perplexity(logits: NDArray[np.float32], tokens: list[int]) -> float:
    values = logits[:-1].astype(np.float64)
    largest = values.max(1, keepdims=True)
    normaliser = largest[:, 0] + np.log(np.exp(values - largest).sum(1))
    chosen = values[np.arange(len(values)), tokens[1:]]
    return math.exp(float((normaliser - chosen).mean()))
