"""benchmarks/tool_templates.py reads what small templates render."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenspeed.benchmarks.tool_templates import main

from ..runtime.entrypoint.tool_models import HERMES_STYLE, LLAMA_STYLE


def test_what_templates_render(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jinja").write_text(HERMES_STYLE)
    (tmp_path / "b.jinja").write_text(LLAMA_STYLE)
    (tmp_path / "c.jinja").write_text("{{ tools }}")
    assert main(tmp_path) == 0
    _, hermes, llama, last = capsys.readouterr().out.splitlines()
    assert hermes.split() == ["a", "hermes", "yes", "yes", "same", "same", "same"]
    assert llama.split() == ["b", "llama3_json", "yes", "refused", "dropped", "dropped", "same"]
    assert last == "2 templates; of these one call read: 2, calls not read: 0"


def test_a_call_that_is_not_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jinja").write_text(HERMES_STYLE.replace('"arguments": {{', '"arguments": [{{'))
    assert main(tmp_path) == 1
