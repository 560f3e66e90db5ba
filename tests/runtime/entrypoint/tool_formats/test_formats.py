"""Each format: what its models write, what they get wrong, and by what a template is recognised."""

from __future__ import annotations

from typing import Any

import pytest
from tokenspeed.runtime.entrypoint.tool_formats.names import NAMES
from tokenspeed.runtime.entrypoint.tool_formats.reader import AnswerReader
from tokenspeed.runtime.entrypoint.tool_formats.registry import FORMATS, tool_format
from tokenspeed.runtime.entrypoint.tool_formats.tool_schemas import ToolSchemas

from .writing import BY_NAME, TOOLS, WRITERS, Call, calls_of, read

ARGUMENTS: dict[str, Any] = {"text": 'a "b"\nc <é> {', "number": 2.5, "flag": True, "list": [1, {"a": None}], "object": {"x": []}}
LOOK: Call = ("look", ARGUMENTS)
BOTH: list[Call] = [LOOK, ("look_up.all-of:it", {"text": ""})]
SEVERAL = [name for name in NAMES if name != "harmony"]
MARKED = [name for name in SEVERAL if name != "llama3_json"]


@pytest.mark.parametrize("name", NAMES)
def test_one_call(name: str) -> None:
    part = read(name, [WRITERS[name]([LOOK])])
    assert calls_of(part) == [LOOK]
    assert (part.text, part.reasoning) == ("", "")


@pytest.mark.parametrize("name", SEVERAL)
def test_parallel_calls(name: str) -> None:
    part = read(name, [WRITERS[name](BOTH)])
    assert calls_of(part) == BOTH and part.text == ""
    assert len({call.id for call in part.calls}) == 2
    assert calls_of(read(name, [WRITERS[name](BOTH)], single=True)) == BOTH[:1]


@pytest.mark.parametrize("name", MARKED)
def test_text_before_and_behind(name: str) -> None:
    written = WRITERS[name]([LOOK])
    assert read(name, [f"I look.\n\n{written}"], gap="\n").text == "I look.\n"
    assert read(name, [f"I look.\n\n{written}"]).text == "I look."
    part = read(name, [f"I look.{written}\n There."], gap="\n")
    assert part.text == "I look.\n There." and calls_of(part) == [LOOK]


@pytest.mark.parametrize("name", NAMES)
def test_no_arguments(name: str) -> None:
    assert calls_of(read(name, [WRITERS[name]([("look", {})])])) == [("look", {})]


@pytest.mark.parametrize("name", NAMES)
def test_a_cut_call_is_content(name: str) -> None:
    """However little is missing of its arguments."""
    written = WRITERS[name]([("look", {"text": "abc"})])
    cut = written[: written.index("abc") + 2]
    part = read(name, [cut])
    assert calls_of(part) == []
    assert part.text == ('{"text": "ab' if name == "harmony" else cut)


@pytest.mark.parametrize("name", NAMES)
def test_plain_text(name: str) -> None:
    for text in ("", "hello", " hello \n", "a < b [and] {c}", '{"answer": 42}', "<tool", '{"name": "other", "parameters": {}}'):
        assert read(name, [text]).text == text


@pytest.mark.parametrize("name", SEVERAL)
def test_calls_within_reasoning_are_none_unless_their_marks_are_the_tokenizers_own(name: str) -> None:
    written = WRITERS[name]([LOOK])
    found = [LOOK] if name in ("deepseek_v3", "deepseek_v31", "kimi_k2", "mistral") else []
    begin, end = BY_NAME[name].thinking
    for text, thinking in ((f"\n{begin}say {written}", False), (f"say {written}", True)):
        part = read(name, [f"{text}{end}\n\n{written}"], thinking=thinking)
        assert calls_of(part) == [*found, LOOK]
        assert end in part.text


@pytest.mark.parametrize(
    ("name", "answer", "text"),
    [
        ("hermes", '<tool_call>{"name": "look", "arguments": {"a": tru}}</tool_call>', None),
        ("hermes", '<tool_call>{"name": "look", "arguments": {"a": 1}</tool_call>', None),
        ("hermes", '<tool_call>{"name": "look", "arguments": "a"}</tool_call>', None),
        ("hermes", '<tool_call>{"arguments": {}}</tool_call>', None),
        ("hermes", '<tool_call>{"name": 5, "arguments": {}}</tool_call>', None),
        ("hermes", '<tool_call>{"name": "look", "arguments": {"a": "\\u00g9"}}</tool_call>', None),
        ("hermes", '<tool_call>{"name": "look", "arguments": {"a": "\\x"}}</tool_call>', None),
        ("hermes", '<tool_call>{"name": "no name", "arguments": {}}</tool_call>', None),
        ("hermes", '<tool_call>{"name": "look", "arguments": {"a": "\n"}}</tool_call>', None),
        ("hermes", "the tag <tool_call> is for calls", None),
        ("hermes", 'a\n<tool_call>{"name": "look", "arguments": {"a": 01}}', None),
        ("llama3_json", '{"name": "look", "parameters": {"a": }}', None),
        ("llama3_json", '{"name": "look", "city": "Paris"}', None),
        ("llama3_json", '{"name": 5}', None),
        ("llama3_json", 'So: {"name": "look", "parameters": {}}', None),
        ("llama3_json", "<|python_tag|>print(1)", "print(1)"),
        ("glm45", "<tool_call>is a tag</tool_call>", None),
        ("glm45", "<tool_call>look\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n<arg_key>", None),
        ("qwen3_coder", "<tool_call>\n<function=look>\n<parameter=text>\na\n</function>\n</tool_call>", None),
        ("qwen3_coder", "<tool_call>\n{}</tool_call>", None),
        ("seed_oss", "<seed:tool_call><function=look><parameter=text>a</function></seed:tool_call>", None),
        ("minimax_m2", "<minimax:tool_call>\n</minimax:tool_call>", None),
        ("mistral", "[TOOL_CALLS][]", "[]"),
        ("mistral", "[TOOL_CALLS]look{}", "look{}"),
        ("mistral", "[TOOL_CALLS]look[ARGS][1]", "look[1]"),
        ("kimi_k2", "<|tool_calls_section_begin|><|tool_calls_section_end|>", ""),
        ("kimi_k2", "<|tool_calls_section_begin|><|tool_call_begin|>look:0<|tool_call_argument_begin|>[", "look:0["),
    ],
)  # fmt: skip
def test_malformed_calls_are_content(name: str, answer: str, text: str | None) -> None:
    """With the marks that the tokenizer has as special tokens left out of it, as anywhere."""
    special = {"mistral", "kimi_k2", "llama3_json"}
    marks = next(found.marks for found in FORMATS if found.name == name)
    part = read(name, [answer], hidden=frozenset(marks if name in special else ()))
    assert calls_of(part) == []
    assert part.text == (answer if text is None else text)


def test_names_without_an_end_hold_up_nothing() -> None:
    for name, opening in (("qwen3_coder", "<tool_call><function="), ("glm45", "<tool_call>"), ("mistral", "[TOOL_CALLS]")):
        reader = AnswerReader(BY_NAME[name], ToolSchemas(TOOLS))
        assert reader.push(opening + "x" * 200).text == ""
        assert len(reader.push("x" * 100).text) == len(opening) + 300


def test_a_call_after_a_broken_one_counts() -> None:
    part = read("hermes", ['<tool_call>{"name": "look", "arguments": {"a": x <tool_call>{"name": "look", "arguments": {}}'])
    assert calls_of(part) == [("look", {})]
    assert part.text == '<tool_call>{"name": "look", "arguments": {"a": x'
    assert [call.whole for call in part.calls] == [False, True]


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("hermes", '<tool_call>{"arguments": {"text": "a"}, "id": 5, "name": "look"}</tool_call>'),
        ("hermes", '<tool_call>\n{"name": "look", "arguments": {"text": "a"}}'),
        ("hermes", '<tool_call>\n<tool_call>\n{"name": "look", "arguments": {"text": "a"}}\n</tool_call>'),
        ("llama3_json", '<|python_tag|>{"type": "function", "name": "look", "parameters": {"text": "a"}}'),
        ("hermes", '<tool_call>{"extra": [1], "name": "look", "arguments": {"text": "a"}, "more": "x"}</tool_call>'),
        ("llama3_json", '{"type": "function", "id": null, "name": "look", "parameters": {"text": "a"}}'),
        ("llama3_json", ' {"name": "look", "arguments": {"text": "a"}}'),
        ("qwen3_coder", "<function=look>\n<parameter=text>\na\n</parameter>\n</function>\n</tool_call>"),
        ("qwen3_coder", "<tool_call><function=look><parameter=text>a</parameter></function></tool_call>"),
        ("glm45", "<tool_call>look<arg_key>text</arg_key><arg_value>a</arg_value></tool_call>"),
        ("glm45", "<tool_call>look\n<arg_key> text </arg_key> <arg_value>a</arg_value> </tool_call>"),
        ("mistral", '[TOOL_CALLS] [{"name": "look", "arguments": {"text": "a"}}]'),
        ("mistral", '[TOOL_CALLS] look[ARGS] {"text": "\\u0061"}'),
        ("mistral", '[TOOL_CALLS]look[CALL_ID]abcdefghi[ARGS]{"text": "a"}'),
        ("kimi_k2", '<|tool_calls_section_begin|> <|tool_call_begin|> look <|tool_call_argument_begin|>{"text": "a"}'),
        ("deepseek_v31", '<｜tool▁calls▁begin｜>\n<｜tool▁call▁begin｜> look <｜tool▁sep｜> {"text": "a"}'),
        ("harmony", ' to=functions.look<|channel|>commentary json<|message|>{"text": "a"}<|call|>'),
        ("harmony", '<|channel|>analysis to=functions.look code<|message|> {"text": "a"}'),
    ],
)
def test_other_spellings(name: str, answer: str) -> None:
    part = read(name, [answer])
    assert calls_of(part) == [("look", {"text": "a"})]
    assert part.text in ("", "<tool_call>")  # one that was opened twice


def test_ids_that_models_give() -> None:
    [call] = read("mistral", ["[TOOL_CALLS]look[CALL_ID]abcdefghi[ARGS]{}"]).calls
    assert call.id == "abcdefghi"
    first, second = read("kimi_k2", [WRITERS["kimi_k2"](BOTH)]).calls
    assert (first.id, second.id) == ("functions.look:0", "functions.look_up.all-of:it:1")


def test_messages_of_channels() -> None:
    answer = (
        "<|channel|>analysis<|message|>Let me think.<|end|><|start|>assistant<|channel|>commentary<|message|>I look."
        '<|end|><|start|>assistant<|channel|>commentary to=functions.look <|constrain|>json<|message|>{"text": "a"}'
    )
    part = read("harmony", [answer])
    assert (part.reasoning, part.text, calls_of(part)) == ("Let me think.", "I look.", [("look", {"text": "a"})])
    part = read("harmony", ["<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.\n"])
    assert (part.reasoning, part.text, part.calls) == ("Hm.", "Yes.\n", ())
    assert read("harmony", ["<|channel|>analysis<|message|>Hm"]).reasoning == "Hm"
    for text in ("no JSON", "[1]"):
        assert read("harmony", [f"<|channel|>commentary to=functions.look<|message|>{text}"]).text == text
    for cut in ("<|channel|>", "<|channel|>comm", " to=func", "<|channel|>commentary to=functions.look <|constrain|>js"):
        assert read("harmony", ["<|channel|>final<|message|>a<|end|><|start|>assistant" + cut]).text == "a"
        assert read("harmony", [cut]).text == ""
    assert read("harmony", ["<|channel|>final So it is, in short.<|end|>"]).text == "final So it is, in short."


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("text", "5", "5"),
        ("number", "5", 5),
        ("number", "five", "five"),
        ("flag", "True", True),
        ("flag", "false", False),
        ("object", "None", None),
        ("object", '{"a": 1}', {"a": 1}),
        ("list", "[1, 2", "[1, 2"),
        ("list", "[True, 'it\\'s \"so\" None', \"it's\"]", [True, 'it\'s "so" None', "it's"]),
        ("object", "{'a': {'b': None}}", {"a": {"b": None}}),
        ("object", "{'a': b'c'}", "{'a': b'c'}"),
        ("flag", '"True"', '"True"'),
        ("unknown", "[1]", [1]),
        ("unknown", "word", "word"),
        ("number", "NaN", "NaN"),
        ("text", "two\nlines\n", "two\nlines\n"),
    ],
)
def test_values_between_tags_are_what_the_schema_says(key: str, written: str, value: object) -> None:
    for name in ("qwen3_coder", "glm45", "seed_oss", "minimax_m2"):
        text = WRITERS[name]([("look", {key: written})])
        assert calls_of(read(name, [text])) == [("look", {key: value})], name


def test_names_are_complete() -> None:
    assert sorted(NAMES) == sorted(found.name for found in FORMATS) == sorted(WRITERS)
    assert [tool_format(name, "") for name in ("none", "auto")] == [None, None]
    for found in FORMATS:
        assert tool_format(found.name, "") is found
        assert not any(one != other and one in other for one in found.opens for other in found.opens)


@pytest.mark.parametrize("name", NAMES)
def test_templates_are_recognised_by_what_they_render(name: str) -> None:
    source = WRITERS[name]([LOOK])
    if name == "llama3_json":
        source = 'Respond in the format {"name": function name, "parameters": dictionary}.'
    found = tool_format("auto", "{{ tools }} functions. " + source)
    assert found is not None and found.name == name


def test_templates_of_formats_that_are_not_known() -> None:
    for source in (
        "{{ tools }}",
        "<tool_calls>[arguments]",
        "<tool_call><invoke name=x arguments>",
        "<|python_tag|><function=",
        "<|channel|>",
    ):
        assert tool_format("auto", source) is None


def test_tools_that_are_none_are_passed_over() -> None:
    odd: list[Any] = [None, 5, {"function": []}, {"function": {"name": 5}}, {"function": {"name": "f", "parameters": [1]}}]
    parameters = {"properties": {"a": {"type": ["null", 5], "enum": ["x"]}}}
    schemas = ToolSchemas([*odd, {"function": {"name": "g", "parameters": parameters}}])
    assert "f" in schemas and "h" not in schemas and schemas.types("f", "a") == frozenset()
    assert schemas.types("g", "a") == {"null", "string"}
