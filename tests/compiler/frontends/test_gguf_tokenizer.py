"""Token ids of rebuilt tokenizers against plain reference implementations, on made-up and on real vocabularies."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenspeed.compiler.frontends.gguf_metadata import GgufMetadata, read_metadata
from tokenspeed.compiler.frontends.gguf_tokenizer import rebuild_tokenizer, score_merges
from tokenspeed.compiler.frontends.model_source import TokenizerFiles
from tokenspeed.plans.errors import ModelError

from .reference_tokenizers import PATTERNS, ByteLevelBpe, SentencePieceBpe
from .tiny_gguf import Tiny, Tokens, byte_level_tokens, sentencepiece_tokens

TEXTS = [
    "Hello world",
    "12345 + 67 = 12412, 1000000",
    "你好，世界。今天天气很好",
    "日本語のテキスト 한국어",
    "🎉👩‍💻 party 🏳️‍🌈",
    "def f(x):\n    return x**2  # x²\n\n\nprint(f(3))\r\n",
    "a  b   c\t\td \n\n e   ",
    "   leading, trailing   ",
    "It's we'll CAN'T they'Re",
    "½ ² Ⅷ ٣٤٥ ১২৩",
    "e\u0301te\u0301 Ǆ ﬁ naïve",
    "<|im_start|>user\nhi there<|im_end|>\n<|im_start|>assistant\n",
    '<tool_call>{"name": "f"}</tool_call><|im_end|',
    "https://example.org/a/b?c=1&d=[2]",
    "",
]
ANY_TEXT = st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=60) | st.lists(
    st.sampled_from([*" \n\t\r'aTsSlLdD12.,/$é世🎉<|>▁", "<|im_end|>", "'ll", "<tool_call>", "</s>"]), max_size=40
).map("".join)


def metadata_of(tokens: Tokens) -> GgufMetadata:
    values = {f"tokenizer.ggml.{key}": value for key, value in tokens.settings.items()}
    values |= {"tokenizer.ggml.tokens": tokens.tokens, "tokenizer.ggml.token_type": tokens.types}
    values |= {"tokenizer.ggml.merges": tokens.merges} if tokens.merges is not None else {}
    values |= {"tokenizer.ggml.scores": tokens.scores} if tokens.scores is not None else {}
    return GgufMetadata(Path("tiny.gguf"), values, "")


def rebuilt(tokens: Tokens) -> TokenizerFiles:
    return rebuild_tokenizer(metadata_of(tokens))


def ids(files: TokenizerFiles, text: str) -> list[int]:
    return Tokenizer.from_buffer(files.tokenizer_json).encode(text, add_special_tokens=False).ids


def added(tokens: list[str], types: list[int]) -> set[str]:
    return {text for text, kind in zip(tokens, types, strict=True) if kind in (2, 3, 4)}


def byte_level_reference(tokens: Tokens) -> ByteLevelBpe:
    assert tokens.merges is not None
    return ByteLevelBpe(tokens.tokens, tokens.merges, tokens.settings["pre"], added(tokens.tokens, tokens.types))


@pytest.mark.parametrize("pre", sorted(PATTERNS))
def test_byte_level_ids(pre: str) -> None:
    tokens = byte_level_tokens(pre)
    files, reference = rebuilt(tokens), byte_level_reference(tokens)
    for text in TEXTS:
        assert ids(files, text) == reference.encode(text), text


@pytest.mark.parametrize("pre", sorted(PATTERNS))
@settings(max_examples=60, deadline=None, derandomize=True)
@given(text=ANY_TEXT)
def test_byte_level_ids_of_any_text(pre: str, text: str) -> None:
    tokenizer, reference = _byte_level_pair(pre)
    assert tokenizer.encode(text, add_special_tokens=False).ids == reference.encode(text)


@cache
def _byte_level_pair(pre: str) -> tuple[Tokenizer, ByteLevelBpe]:
    tokens = byte_level_tokens(pre)
    return Tokenizer.from_buffer(rebuilt(tokens).tokenizer_json), byte_level_reference(tokens)


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "tekken", "default"])
def test_byte_level_text_comes_back(pre: str) -> None:
    tokenizer = Tokenizer.from_buffer(rebuilt(byte_level_tokens(pre)).tokenizer_json)
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_ids(prefix: bool) -> None:
    tokens = sentencepiece_tokens(add_space_prefix=prefix)
    assert tokens.scores is not None
    files = rebuilt(tokens)
    reference = SentencePieceBpe(tokens.tokens, tokens.scores, added(tokens.tokens, tokens.types), prefix=prefix)
    tokenizer = Tokenizer.from_buffer(files.tokenizer_json)
    for text in [*TEXTS, "The quick brown fox returns", "<s>the</s> the<s><s>12312", "the </s>", "return    return"]:
        encoded = tokenizer.encode(text, add_special_tokens=False).ids
        assert encoded == reference.encode(text), text
        if "<s>" not in text and "</s>" not in text:
            assert tokenizer.decode(encoded) == text


@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=ANY_TEXT)
def test_sentencepiece_ids_of_any_text(text: str) -> None:
    tokenizer, reference = _sentencepiece_pair()
    assert tokenizer.encode(text, add_special_tokens=False).ids == reference.encode(text)


@cache
def _sentencepiece_pair() -> tuple[Tokenizer, SentencePieceBpe]:
    tokens = sentencepiece_tokens()
    assert tokens.scores is not None
    reference = SentencePieceBpe(tokens.tokens, tokens.scores, added(tokens.tokens, tokens.types), prefix=True)
    return Tokenizer.from_buffer(rebuilt(tokens).tokenizer_json), reference


def test_merges_follow_scores() -> None:
    tokens, scores = ["a", "b", "c", "bc", "ab", "abc"], [-9.0, -8.0, -7.0, -1.0, -2.0, -3.0]
    merges = score_merges(tokens, scores, [1] * 6)
    assert merges == [("b", "c"), ("a", "b"), ("ab", "c"), ("a", "bc")]


def test_special_tokens_and_defaults() -> None:
    files = rebuilt(byte_level_tokens("smollm", chat_template_is_elsewhere="x"))
    assert files.special_tokens == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    assert files.end_tokens == (2, 0)  # the declared one first, then <|endoftext|>
    assert (files.begin_token, files.add_begin_token) == (1, False)
    llama = rebuilt(sentencepiece_tokens())
    assert (llama.end_tokens, llama.begin_token, llama.add_begin_token) == ((2,), 1, True)
    assert rebuilt(byte_level_tokens("llama-bpe")).add_begin_token
    assert not rebuilt(byte_level_tokens("llama-bpe", add_bos_token=False)).add_begin_token
    assert rebuilt(byte_level_tokens("smollm", eot_token_id=5)).end_tokens == (2, 5, 0)


def test_user_defined_tokens_are_text_and_control_tokens_are_not() -> None:
    tokenizer = Tokenizer.from_buffer(rebuilt(byte_level_tokens()).tokenizer_json)
    encoded = tokenizer.encode("<tool_call><|im_end|>", add_special_tokens=False).ids
    assert tokenizer.decode(encoded, skip_special_tokens=True) == "<tool_call>"


def test_same_bytes_every_time() -> None:
    tokens = byte_level_tokens()
    assert rebuilt(tokens).tokenizer_json == rebuilt(tokens).tokenizer_json
    assert json.loads(rebuilt(tokens).tokenizer_json)["model"]["type"] == "BPE"


def test_chat_template_from_a_file(tmp_path: Path) -> None:
    path = Tiny(keys={"tokenizer.chat_template": "{{ messages }}"}).write(tmp_path / "tiny.gguf")
    assert rebuild_tokenizer(read_metadata(path)).chat_template == "{{ messages }}"


def _edited(tokens: Tokens, **changes: object) -> Tokens:
    for name, value in changes.items():
        setattr(tokens, name, value)
    return tokens


@pytest.mark.parametrize(
    ("tokens", "named"),
    [
        (byte_level_tokens("falcon"), "falcon"),
        (byte_level_tokens(None), "tokenizer.ggml.pre"),
        (byte_level_tokens("smollm", model="bert"), "bert"),
        (_edited(byte_level_tokens(), merges=["a b c"]), "'b c'"),
        (_edited(byte_level_tokens(), merges=["ab"]), "merges[0]"),
        (_edited(byte_level_tokens(), types=[1]), "token_type"),
        (_edited(byte_level_tokens(), merges=None), "tokenizer.ggml.merges"),
        (_edited(sentencepiece_tokens(), scores=[0.0]), "scores"),
        (sentencepiece_tokens(remove_extra_whitespaces=True), "remove_extra_whitespaces"),
        (byte_level_tokens("smollm", eos_token_id=99_999), "eos_token_id"),
        (byte_level_tokens("smollm", eos_token_id="2"), "eos_token_id"),
        (Tokens(["a", "b", "a"], [1, 1, 1], {"model": "gpt2", "pre": "smollm"}, merges=[]), "'a'"),
    ],
)
def test_refused_by_name(tokens: Tokens, named: str) -> None:
    with pytest.raises(ModelError) as caught:
        rebuilt(tokens)
    assert named in str(caught.value)


# Recorded from this tokenizer once it agreed with the reference implementation (test_smollm2_ids checks both again).
SMOLLM2_IDS = {
    "Hello world": [19556, 905],
    "12345 + 67": [33, 34, 35, 36, 37, 1232, 216, 38, 39],
    "你好，世界": [18645, 250, 48392, 138, 12831, 7906, 240, 178, 239, 230],
    "🎉👩‍💻 x": [10813, 232, 227, 10813, 235, 119, 321, 231, 10813, 236, 136, 1792],
    "def f(x):\n    return x**2\n": [1604, 275, 24, 104, 727, 472, 1003, 1792, 828, 34, 198],
    "a  b   c\t\td \n\n e": [81, 216, 278, 256, 265, 197, 197, 84, 38028, 297],
    "<|im_start|>user\nhi<|im_end|>\n": [1, 4093, 198, 6004, 2, 198],
    "½ ² Ⅷ": [16738, 216, 19133, 216, 173, 223, 117],
}


def test_smollm2_ids(smollm2_path: Path) -> None:
    metadata = read_metadata(smollm2_path)
    files, values = rebuild_tokenizer(metadata), metadata.values
    tokens, types = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    reference = ByteLevelBpe(tokens, values["tokenizer.ggml.merges"], "smollm", added(tokens, types))
    tokenizer = Tokenizer.from_buffer(files.tokenizer_json)
    for text, expected in SMOLLM2_IDS.items():
        assert tokenizer.encode(text, add_special_tokens=False).ids == expected, text
    for text in [*TEXTS, *SMOLLM2_IDS]:
        assert tokenizer.encode(text, add_special_tokens=False).ids == reference.encode(text), text
    assert (files.end_tokens, files.begin_token, files.add_begin_token) == ((2, 0), 1, False)
    assert files.chat_template.startswith("{% for message in messages %}")
    assert tokenizer.get_vocab_size() == 49152
    digest = hashlib.sha256(files.tokenizer_json).hexdigest()
    assert digest == hashlib.sha256(rebuild_tokenizer(metadata).tokenizer_json).hexdigest()
