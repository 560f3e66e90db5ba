"""Chat templates: messages to prompt text, by the plan's Jinja template in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..plans.errors import PlanError
from .call_arguments import json_with_arguments, plain

Message = Mapping[str, Any]


class ChatTemplateError(Exception):
    """The template refused the messages, or failed on them; the text is for the client."""


class ChatTemplate:
    """A compiled template. `special_tokens` (bos_token, ...) are its global names.

    Raises PlanError when the source does not parse. `takes_tools` says whether the template looks at `tools` at all;
    `takes_parts` whether it walks over content parts instead of expecting a string.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationBlock]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            tree = environment.parse(source)
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise PlanError("the plan's chat template cannot be read", where="chat template", got=str(error)) from None
        self.source = source
        self._special_tokens = dict(special_tokens)
        self.variables = frozenset(meta.find_undeclared_variables(tree))
        self.takes_tools = "tools" in self.variables
        self.takes_parts = _walks_content(tree)
        self.reasoning_name = "thinking" if "message.thinking" in source and "reasoning_content" not in source else None
        """The field of a message that it reads reasoning from, where it is not the usual one."""

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt text. `arguments` are further names the template may use; raises ChatTemplateError."""
        names = self._special_tokens | dict(arguments or {})
        names |= {"messages": list(messages), "add_generation_prompt": add_generation_prompt}
        if tools is not None:
            names["tools"] = list(tools)
        try:
            return self._template.render(names)
        except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ChatTemplateError(f"the chat template failed on these messages: {error}") from None
        except (RecursionError, MemoryError):
            raise ChatTemplateError("the chat template failed on these messages: nested too deeply") from None


class _GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's tokens for training; here its body is rendered as it is."""

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: Jinja's own filter escapes <, > and & for HTML, which no model was trained on."""
    if indent is None and separators is None and not sort_keys:
        return json_with_arguments(value, ensure_ascii=ensure_ascii)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys, default=plain)


def _walks_content(tree: nodes.Template) -> bool:
    """Whether a `for` loop runs over a message's content (directly, or over a variable set from it)."""
    named = {
        assign.target.name
        for assign in tree.find_all(nodes.Assign)
        if isinstance(assign.target, nodes.Name) and _is_content(assign.node)
    }
    loops = (loop.iter for loop in tree.find_all(nodes.For))
    return any(_is_content(over) or (isinstance(over, nodes.Name) and over.name in named) for over in loops)


def _is_content(node: nodes.Node) -> bool:
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    return isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and node.arg.value == "content"
