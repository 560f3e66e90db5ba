"""Templates as models ship them, in a sandbox."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tokenspeed.plans.errors import PlanError
from tokenspeed.runtime.chat_template import ChatTemplate, ChatTemplateError, Message

CHATML = """{% for message in messages %}
    {% if loop.first and message.role != 'system' %}{{ bos_token }}{% endif %}
<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}"""
USER = [{"role": "user", "content": "hi"}]


def render(source: str, messages: Sequence[Message] | None = None, **more: object) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render(messages or USER, arguments=more)


def test_blocks_are_trimmed_as_models_expect() -> None:
    assert render(CHATML) == "<s><|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_json_is_not_escaped_for_html() -> None:
    assert render("{{ messages[0] | tojson }}", [{"role": "user", "content": "<é>"}]) == '{"role": "user", "content": "<é>"}'


def test_loop_controls_and_generation_blocks() -> None:
    body = "{% if loop.index > 1 %}{% break %}{% endif %}{% generation %}{{ m.content }}{% endgeneration %}"
    source = "{% for m in messages %}" + body + "{% endfor %}"
    assert render(source, USER * 3) == "hi"


def test_raise_exception_reaches_the_client() -> None:
    with pytest.raises(ChatTemplateError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


def test_strftime_now_and_arguments() -> None:
    assert len(render("{{ strftime_now('%Y') }}")) == 4
    assert render("{{ enable_thinking }}", enable_thinking=False) == "False"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ cycler.__init__.__globals__.os.popen('true').read() }}",
        "{% for i in range(1000000) %}{% endfor %}",
        "{{ 1 // 0 }}",
        "{{ messages[0].content + 1 }}",
        "{% include 'etc' %}",
    ],
)
def test_a_hostile_template_gets_nowhere(source: str) -> None:
    with pytest.raises(ChatTemplateError):
        render(source)


def test_a_broken_template_is_the_plans_fault() -> None:
    with pytest.raises(PlanError, match="chat template"):
        ChatTemplate("{% for %}", {})


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (CHATML, False),
        ("{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}", True),
        ("{% for m in messages %}{% set c = m['content'] %}{% for part in c %}{% endfor %}{% endfor %}", True),
    ],
)
def test_whether_content_parts_are_wanted(source: str, expected: bool) -> None:
    assert ChatTemplate(source, {}).takes_parts is expected


def test_whether_tools_are_taken() -> None:
    assert not ChatTemplate(CHATML, {}).takes_tools
    template = ChatTemplate("{% if tools %}{{ tools | tojson }}{% endif %}", {})
    assert template.takes_tools
    assert template.render(USER, tools=[{"type": "function"}]) == '[{"type": "function"}]'
