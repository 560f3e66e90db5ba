"""Small models whose chat templates have tools, in the style of two families, with the special tokens that go with them."""

from __future__ import annotations

from functools import cache

from tokenizers import AddedToken
from tokenizers import Tokenizer as Library
from tokenspeed.runtime.chat_template import ChatTemplate
from tokenspeed.runtime.entrypoint.served_model import ServedModel
from tokenspeed.runtime.entrypoint.tool_formats.registry import tool_format
from tokenspeed.runtime.tokenizer import Tokenizer

from .tiny_tokenizers import END, byte_level

HERMES_STYLE = """
{%- if tools %}<|system|>Tools: {% for tool in tools %}{{ tool | tojson }}
{% endfor %}Call them so: <tool_call>{"name": NAME, "arguments": OBJECT}</tool_call><|end|>
{% endif %}
{%- for message in messages %}
<|{{ message.role }}|>
{{ message.content }}
{%- for call in message.tool_calls or [] %}
{%- if message.content or not loop.first %}{{ '\\n' }}{% endif %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|end|>
{% endfor %}
{%- if add_generation_prompt %}<|assistant|>
{% endif %}"""

LLAMA_STYLE = """
{%- for message in messages %}<|{{ message.role }}|>

{% if loop.first and tools %}Respond in the format {"name": function name, "parameters": arguments}.
{% for tool in tools %}{{ tool | tojson(indent=4) }}{% endfor %}
{% endif %}
{%- if message.tool_calls %}
{%- if message.tool_calls | length > 1 %}{{ raise_exception('one call at a time') }}{% endif %}
{%- set call = message.tool_calls[0].function %}
{{- '{"name": "' + call.name + '", "parameters": ' }}{{ call.arguments | tojson }}{{ '}' }}
{%- else %}{{ message.content | trim }}{% endif %}<|end|>
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>

{% endif %}"""

SAID_AGAIN = "{{ messages[-1].content }}<|end|>{{ tools }}"
"""The answer is the last message's content: the executor of these tests says prompts again."""

_SPECIAL = ("<|system|>", "<|tool|>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>")
_SPECIAL += ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|call|>")


@cache
def _tokenizer() -> Tokenizer:
    library = Library.from_str(byte_level().decode())
    library.add_special_tokens([AddedToken(text, special=True) for text in _SPECIAL])
    library.add_tokens([AddedToken(text, special=False) for text in ("<tool_call>", "</tool_call>")])
    return Tokenizer(library.to_str().encode())


def tool_model(template: str, parser: str = "auto", max_context: int = 4096) -> ServedModel:
    tokenizer = _tokenizer()
    return ServedModel(
        "tiny-model",
        "0" * 64,
        "1.2.3",
        tokenizer.vocabulary,
        max_context,
        (END,),
        tokenizer,
        ChatTemplate(template, {}),
        tool_format(parser, template),
    )
