"""Whether tool calls that chat templates render are read back, and whether what is read comes back as the same text.

    python benchmarks/tool_templates.py FOLDER             # *.jinja; llama.cpp collects many: models/templates in its sources

For each template: the format that its source shows; one call and two calls of an answer, read back from what it renders ("yes",
"no", or "refused" by the template); then answers with text before a call, with reasoning, and with arguments in a spelling of
their own: whether the next turn's prompt begins with this turn's prompt and answer ("same"), or where a template makes that
impossible: it shows no text or reasoning ("dropped"), does not go on from its own prompt for an answer ("other prompt"), or
writes it anew ("differs"). Exit code 1 when a call is not read.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenspeed.runtime.call_arguments import CallArguments
from tokenspeed.runtime.chat_template import ChatTemplate, ChatTemplateError
from tokenspeed.runtime.entrypoint.call_layout import call_layout
from tokenspeed.runtime.entrypoint.tool_formats.answer_parts import AnswerPart
from tokenspeed.runtime.entrypoint.tool_formats.reader import AnswerReader
from tokenspeed.runtime.entrypoint.tool_formats.registry import tool_format
from tokenspeed.runtime.entrypoint.tool_formats.tool_format import ToolFormat
from tokenspeed.runtime.entrypoint.tool_formats.tool_schemas import ToolSchemas

USER, NAMES = "USER-TEXT", ("get_weather", "look_up")
ARGUMENTS: dict[str, Any] = {"city": 'Paris "x"\nb <é>', "days": 3, "more": {"a": [1, 2.5, None]}}
OWN_SPELLING = json.dumps(ARGUMENTS, ensure_ascii=False, separators=(",", ":"))
PROPERTIES = {"city": {"type": "string"}, "days": {"type": "integer"}, "more": {"type": "object"}}
PARAMETERS = {"type": "object", "properties": PROPERTIES}
TOOLS = [{"type": "function", "function": {"name": name, "description": "", "parameters": PARAMETERS}} for name in NAMES]
ANSWERS = {"text": "I look.", "reasoning": "<think>\nHm.\n</think>\n\n", "own spelling": ""}


@dataclass(frozen=True)
class Template:
    chat: ChatTemplate
    tool_format: ToolFormat

    def render(self, *messages: dict[str, Any], prompt: bool = False) -> str | None:
        """None when the template refuses them."""
        try:
            return self.chat.render([{"role": "user", "content": USER}, *messages], tools=TOOLS, add_generation_prompt=prompt)
        except ChatTemplateError:
            return None

    def answer(self, content: str, names: Sequence[str], spelled: str | None = None, ids: Sequence[str] = ()) -> dict[str, Any]:
        kimi = self.tool_format.name == "kimi_k2"  # ids are part of what the model writes
        calls = [
            {
                "id": ids[at] if ids else f"functions.{name}:{at}" if kimi else f"abcdefgh{at}",
                "type": "function",
                "function": {"name": name, "arguments": CallArguments(ARGUMENTS, spelled)},
            }
            for at, name in enumerate(names)
        ]
        null = call_layout(self.chat, self.tool_format.opens).null_content
        return {"role": "assistant", "content": None if null else content, "tool_calls": calls}

    def read(self, text: str, *, thinking: bool = False) -> AnswerPart:
        gap = call_layout(self.chat, self.tool_format.opens).gap
        reader = AnswerReader(self.tool_format, ToolSchemas(TOOLS), gap=gap, thinking=thinking)
        return reader.push(text).joined(reader.finish())


def read_back(template: Template, names: Sequence[str]) -> str:
    """Whether so many calls are read from what the template makes of them."""
    rendered = template.render(template.answer("", names))
    if rendered is None or any(name not in rendered.partition(USER)[2] for name in names):
        return "refused"
    text = rendered.partition(USER)[2]
    if template.tool_format.bare:
        text = text[text.index("{") :]
    if template.tool_format.answer:
        text = text.partition("<|start|>assistant")[2]
    found = [(call.name, json.loads(call.arguments)) for call in template.read(text).calls if call.whole]
    return "yes" if found == [(name, ARGUMENTS) for name in names] else "no"


def comes_again(template: Template, content: str, spelled: str | None) -> str:
    """Whether an answer as the template itself writes it, read and sent back, is the same text in the next prompt."""
    prompt, whole = template.render(prompt=True), template.render(template.answer(content, NAMES[:1], spelled))
    plain = template.render({"role": "assistant", "content": USER[::-1]})
    if prompt is None or whole is None or plain is None:
        return "refused"
    if any(word in content and word not in whole for word in ("I look.", "Hm.")):
        return "dropped"
    if not whole.startswith(prompt):
        return "other prompt"
    answer = whole[len(prompt) :].removesuffix(plain.partition(USER[::-1])[2])
    part = template.read(answer, thinking=prompt.rstrip().endswith(template.tool_format.thinking[0]))
    if [call.whole for call in part.calls] != [True]:
        return "not read"
    given = "abcdefgh0" if template.tool_format.name == "mistral" else part.calls[0].id  # a list's ids come too late to be given
    sent = template.answer(part.text, NAMES[:1], part.calls[0].arguments if spelled else None, [given])
    if part.reasoning and template.chat.reasoning_name:
        sent |= {"content": "", template.chat.reasoning_name: part.reasoning}
    result = {"role": "tool", "tool_call_id": given, "name": NAMES[0], "content": "42"}
    later = template.render(sent, result, prompt=True)
    return "refused" if later is None else "same" if later.startswith(prompt + answer) else "differs"


def main(folder: Path) -> int:
    rows: list[tuple[str, ...]] = [("template", "format", "one call", "two calls", *ANSWERS)]
    unread = 0
    for path in sorted(folder.glob("*.jinja")):
        source = path.read_text()
        found = tool_format("auto", source)
        if found is None:
            continue
        template = Template(ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}), found)
        read = [read_back(template, NAMES[:count]) for count in (1, 2)]
        unread += read.count("no")
        spellings = [OWN_SPELLING if kind == "own spelling" else None for kind in ANSWERS]
        again = [comes_again(template, *pair) for pair in zip(ANSWERS.values(), spellings, strict=True)]
        rows.append((path.stem, found.name, *read, *again))
    for row in rows:
        print(f"{row[0]:48} {row[1]:13}", *(f"{cell:13}" for cell in row[2:]))
    print(f"{len(rows) - 1} templates; of these one call read: {sum(row[2] == 'yes' for row in rows)}, calls not read: {unread}")
    return 1 if unread else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
