"""Writes a byte-level tokenizer.json of a given size, of made-up words, beside a config.json.

    python benchmarks/made_up_tokenizer.py CONFIG DIRECTORY

For plans that answer text with weights that are made up too: tokens become text at the price of a real vocabulary.
"""

from __future__ import annotations

import argparse
import json
import random
import string
import sys
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

_SPECIAL, _LONGEST = 256, 9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="config.json that says how many tokens there are")
    parser.add_argument("directory", type=Path, help="where both go, for tokenspeed-compile")
    arguments = parser.parse_args()
    text = arguments.config.read_text()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    (arguments.directory / "config.json").write_text(text)
    made_up(json.loads(text)["vocab_size"]).save(str(arguments.directory / "tokenizer.json"))
    return 0


def made_up(tokens: int) -> Tokenizer:
    """All bytes, words of up to nine letters, each one letter longer than another, and special tokens at the end."""
    vocabulary = {spelled: at for at, spelled in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    chosen, merges = random.Random(0), []
    words = ["Ġ", *string.ascii_lowercase]
    while len(vocabulary) < tokens - _SPECIAL:
        word, letter = chosen.choice(words), chosen.choice(string.ascii_lowercase)
        longer = word + letter
        if longer not in vocabulary and len(longer) <= _LONGEST:
            vocabulary[longer] = len(vocabulary)
            merges.append((word, letter))
            words.append(longer)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.add_special_tokens([AddedToken(f"<|special_{at}|>", special=True) for at in range(_SPECIAL)])
    return tokenizer


if __name__ == "__main__":
    sys.exit(main())
