"""Traces of each format, and files that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenspeed.runtime.traffic.errors import TraceError
from tokenspeed.runtime.traffic.reading import read_trace


def lines(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def agent_request(t: float, tokens: int, ids: list[int], **more: Any) -> dict[str, Any]:
    return {"t": t, "type": "n", "in": tokens, "out": 5, "hash_ids": ids, "stop": "tool_use", "api_time": 2.5, **more}


def agent_session(name: str, *requests: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": name,
        "block_size": 4,
        "hash_id_scope": "local",
        "tool_tokens": 5,
        "system_tokens": 4,
        "requests": list(requests),
    }


def test_agent_sessions(tmp_path: Path) -> None:
    talk = [
        agent_request(0.0, 14, [1, 2, 3]),
        agent_request(10.0, 21, [1, 2, 3, 4, 5], stop="end_turn"),
        agent_request(11.0, 12, [1, 2, 6], stop="", output_types=["tool_use"], out=0),
    ]
    for name in ("b", "a"):
        (tmp_path / f"{name}.json").write_text(json.dumps(agent_session(name, *talk)))
    (tmp_path / "README.md").write_text("not a trace")
    trace = read_trace(tmp_path)
    assert [session.session_id for session in trace.sessions] == ["a", "b"]
    first, second, third = trace.sessions[0].turns
    assert [turn.prompt_tokens for turn in (first, second, third)] == [14, 21, 12]
    assert [turn.gap_seconds for turn in (first, second, third)] == [0.0, 7.5, 0.0]
    assert [turn.end for turn in (first, second, third)] == ["tool_call", "end_of_turn", "tool_call"] and third.output_tokens == 1
    # the first prompt's tail begins the block that the second has there
    assert second.prompt.common_tokens(first.prompt) == 14 and third.prompt.common_tokens(second.prompt) == 8
    # both sessions have the same tools and system prompt, and nothing else in common
    assert first.prompt.common_tokens(trace.sessions[1].turns[0].prompt) == 8


def test_mooncake(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "chat.jsonl",
        {"timestamp": 500, "input_length": 600, "output_length": 7, "hash_ids": [3, 8]},
        "",
        {"timestamp": 2500, "input_length": 1024, "output_length": 1, "hash_ids": [3, 9]},
    )
    first, second = (session.turns[0] for session in read_trace(path).sessions)
    assert (first.prompt_tokens, second.prompt_tokens, second.arrival_seconds) == (600, 1024, 2.0)
    assert second.prompt.common_tokens(first.prompt) == 512 and first.end is None


def test_azure(tmp_path: Path) -> None:
    rows = (
        "TIMESTAMP,ContextTokens,GeneratedTokens",
        "2023-11-16 18:17:03.9799600,4808,10",
        "2023-11-16 18:17:04.4799600,3180,8",
    )
    first, second = (session.turns[0] for session in read_trace(lines(tmp_path / "code.csv", *rows)).sessions)
    assert (first.prompt_tokens, first.output_tokens, second.arrival_seconds) == (4808, 10, 0.5)
    assert second.prompt.common_tokens(first.prompt) == 0


def test_texts(tmp_path: Path) -> None:
    def row(second: float, text: str, output: str = "answer") -> dict[str, Any]:
        return {"timestamp": 1e6 * second, "input": text, "output": output, "session_id": "one"}

    path = lines(tmp_path / "agent.jsonl", row(3, "issue: it fails" * 9), row(9, "issue: it fails" * 9 + " really"))
    session = read_trace(path).sessions[0]
    first, second = session.turns
    assert (first.prompt_tokens, second.prompt_tokens, first.output_tokens) == (34, 36, 2)
    assert second.prompt.common_tokens(first.prompt) == 33 and second.prompt.text == "issue: it fails" * 9 + " really"
    assert second.gap_seconds == pytest.approx(6 - 0.04) and second.arrival_seconds == 6


def test_drawn_sessions() -> None:
    trace = read_trace("synthetic:sessions=2,seed=7")
    assert len(trace.sessions) == 2 and trace.sessions[0].session_id == "agent-7-0"
    with pytest.raises(TraceError, match="sessions=N,seed=N"):
        read_trace("synthetic:agents=2")


GOOD = {"timestamp": 0, "input_length": 5, "output_length": 7, "hash_ids": [3]}


@pytest.mark.parametrize(
    ("name", "content", "place", "got"),
    [
        ("a.jsonl", [GOOD, {**GOOD, "input_length": "5"}], "a.jsonl:2", "input_length"),
        ("a.jsonl", [GOOD, "", '{"timestamp": 0'], "a.jsonl:3", "truncated"),
        ("a.jsonl", [{**GOOD, "input_length": 0}], "a.jsonl:1", "input 0"),
        ("a.jsonl", [{**GOOD, "hash_ids": [-1]}], "a.jsonl:1", "-1"),
        ("a.jsonl", ['{"tokens": 3}'], "a.jsonl:1", "tokens"),
        ("a.jsonl", [""], "a.jsonl:1", ""),
        ("a.csv", ["time,in,out"], "a.csv:1", "time,in,out"),
        ("a.csv", ["TIMESTAMP,ContextTokens,GeneratedTokens", "2023-11-16 18:17:03,five,1"], "a.csv:2", "five"),
        ("a.csv", ["TIMESTAMP,ContextTokens,GeneratedTokens", "2023-11-16 18:17:03,5"], "a.csv:2", "03,5"),
        ("a.csv", ["TIMESTAMP,ContextTokens,GeneratedTokens"], "a.csv", ""),
        ("a.json", ["{}"], "a.json", "id"),
        ("a.json", [agent_session("a")], "a.json", ""),
        ("a.json", [agent_session("a", agent_request(5, 8, [1]), agent_request(4, 8, [1]))], "requests[1]", "t 4"),
        ("a.json", [agent_session("a", agent_request(5, 0, []))], "requests[0]", "in 0"),
    ],
)
def test_bad_files_name_the_place(tmp_path: Path, name: str, content: list[object], place: str, got: str) -> None:
    with pytest.raises(TraceError) as caught:
        read_trace(lines(tmp_path / name, *content))
    assert place in caught.value.where and got in caught.value.got


def test_what_is_no_trace(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot be read"):
        read_trace(tmp_path / "missing.csv")
    with pytest.raises(TraceError, match="no trace"):
        read_trace(tmp_path)
    with pytest.raises(TraceError, match="claude-code, mooncake"):
        read_trace(tmp_path, "other")
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps(agent_session("same", agent_request(0, 8, [1, 2]))))
    with pytest.raises(TraceError, match="the same session"):
        read_trace(tmp_path)
