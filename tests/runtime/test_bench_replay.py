"""tokenspeed-bench replay: against the real entrypoint, engine loop and scheduler, and against servers that know less."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from tokenspeed.runtime import bench_cli
from tokenspeed.runtime.benchmark.conversation import TextConversation, words
from tokenspeed.runtime.benchmark.exchange import Exchange
from tokenspeed.runtime.benchmark.server_kinds import kind_of
from tokenspeed.runtime.traffic.contents import Vocabulary
from tokenspeed.runtime.traffic.session import Prompt, Session, Turn
from tokenspeed.runtime.traffic.tokens import SessionTokens

from .entrypoint.live_server import LiveServer
from .test_bench_serve import USAGE, stub

TOKENS = ("--token-ids", "20", "60")


def agent(name: str, *turns: tuple[int, int, list[int], str]) -> dict[str, Any]:
    """Turns of (tokens in, tokens out, blocks of 8, stop), a tenth of a second apart."""
    requests = [
        {"t": 0.1 * number, "in": tokens, "out": out, "hash_ids": ids, "stop": stop, "api_time": 0.05}
        for number, (tokens, out, ids, stop) in enumerate(turns)
    ]
    return {"id": name, "block_size": 8, "tool_tokens": 8, "system_tokens": 8, "requests": requests}


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    folder = tmp_path / "trace"
    folder.mkdir()
    talk = [(20, 6, [1, 2], "tool_use"), (33, 5, [1, 2, 3, 4], "end_turn"), (60, 4, [1, 2, 3, 4, 5, 6, 7], "tool_use")]
    for name in ("a", "b/c"):
        (folder / f"{name[0]}.json").write_text(json.dumps(agent(name, *talk)))
    return folder


@pytest.fixture(scope="module")
def live() -> Iterator[LiveServer]:
    server = LiveServer()
    yield server
    server.stop()


def run(trace: Path | str, url: str, *arguments: str) -> Result:
    return CliRunner().invoke(bench_cli.main, ["replay", "--trace", str(trace), "--url", url, *arguments])


def report(done: Result) -> dict[str, Any]:
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_sessions_of_the_real_server(trace: Path, live: LiveServer, tmp_path: Path) -> None:
    first = len(live.executor.batches)
    html = tmp_path / "page.html"
    done = run(trace, live.url, "--json", "-", "--agents", "1", *TOKENS, "--html", str(html))
    found = report(done)
    every, told = found["all"], found["plan"]
    assert (told["server"], told["prompts"], told["tokens counted by"]) == ("tokenspeed", "tokens", "server")
    assert found["traffic"]["unfinished"] == 0 and not found["errors"]
    assert (every["turns"], every["refused"], every["failed"]) == (6, 0, 0)
    assert (every["input_tokens"], every["output_tokens"]) == (2 * (20 + 33 + 60), 2 * (6 + 5 + 4))
    # units of 8 tokens: what the turn before left, its answer too; the second session has the system prompt of the first
    assert every["cached_tokens"] == (0 + 24 + 32) + (16 + 24 + 32)
    assert every["ttft_seconds"]["count"] == 6 and every["inter_token_seconds"]["count"] == 2 * (5 + 4 + 3)
    assert found["kind"] == "measured" and found["traffic"]["turns"] == 6 and found["makespan_seconds"] > 0.2
    assert "<svg" in html.read_text()
    # the executor says the prompt again, and the next prompt has that behind the one before
    prompts = {a.request_id: a.prompt.tolist() for batch in live.executor.batches[first:] for a in batch.admissions}
    one, two, three = list(prompts.values())[:3]
    assert two[:26] == [*one, *one[:6]] and three[:38] == [*two, *two[:5]]


def test_the_traces_own_answers(trace: Path, live: LiveServer) -> None:
    first = len(live.executor.batches)
    found = report(run(trace, live.url, "--json", "-", *TOKENS, "--answers", "traced", "--seed", "3", "--priority", "2"))
    assert found["all"]["output_tokens"] == 30 and found["settings"]["priority"] == 2
    prompts = [a.prompt.tolist() for batch in live.executor.batches[first:] for a in batch.admissions]
    one, two = (next(item for item in prompts if len(item) == length) for length in (20, 33))
    assert two[:16] == one[:16] and two[20:26] != one[:6]


def test_an_open_loop_and_limits(trace: Path, live: LiveServer) -> None:
    options = ("--open-loop", "--session-rate", "50", "--time-scale", "0.5", "--max-context", "40", "--sessions", "3")
    done = run(trace, live.url, *options, *TOKENS)
    assert done.exit_code == 0, done.output
    assert (
        "3 sessions, 6 turns; open loop" in done.stdout and "3 turns, 0 whole sessions" in done.stdout and "TTFT" in done.stdout
    )
    none = run(trace, live.url, "--max-context", "10")
    assert none.exit_code == 2 and "--context-scale" in none.stderr


def test_hints_tell_ends(trace: Path) -> None:
    with stub() as server:
        report(run(trace, server.url, "--json", "-", "--server", "tokenspeed", "--agents", "1", "--time-scale", "0"))
        assert [body for body in server.bodies if "end" in body] == [{"end": "tool_call"}, {"end": "end_of_turn"}] * 2
        assert server.deleted == ["/v1/sessions/a", "/v1/sessions/b%2Fc"]
        assert [body["session_id"] for body in server.bodies if "prompt" in body] == ["a"] * 3 + ["b/c"] * 3


def test_a_server_that_knows_little(trace: Path) -> None:
    with stub() as server:
        options = ("--api", "chat", "--agents", "1", "--sessions", "1", "--time-scale", "0", "--field", "top_k=5")
        found = report(run(trace, server.url, "--json", "-", *options, "--session-header", "X-Routed-By"))
        assert (found["plan"]["server"], found["plan"]["prompts"]) == ("openai", "text")
        assert all(body["top_k"] == 5 and body["max_tokens"] and "ignore_eos" not in body for body in server.bodies)
        first, second, _ = (body["messages"] for body in server.bodies)
        assert [message["role"] for message in second] == ["user", "assistant", "user"]
        assert second[0] == first[0] and len(first[0]["content"].split()) == 20 and second[1]["content"] == "abcde"
        assert len(second[2]["content"].split()) == 33 - 20 - USAGE["completion_tokens"]
        assert found["all"]["cached_tokens"] == 9


def test_what_llama_cpp_tells(trace: Path) -> None:
    with stub() as server:
        server.told = {"owned_by": "llamacpp", "meta": {"n_ctx": 40, "n_vocab": 49152}}
        found = report(run(trace, server.url, "--json", "-", "--time-scale", "0", "--sessions", "1"))
        assert (found["plan"]["server"], found["plan"]["prompts"]) == ("llamacpp", "tokens")
        assert found["plan"]["answers"].startswith("traced") and all("ignore_eos" in body for body in server.bodies)
        assert [len(body["prompt"]) for body in server.bodies] == [20, 33] and found["traffic"]["left_out_turns"] == 3 + 1


def test_texts_are_sent_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "agent.jsonl"
    rows = [{"timestamp": n, "input": "fix it" + " please" * n, "output": "done now", "session_id": "s"} for n in range(2)]
    path.write_text("\n".join(map(json.dumps, rows)))
    with stub() as server:
        report(run(path, server.url, "--json", "-", "--text"))
        assert [body["prompt"] for body in server.bodies] == ["fix it", "fix it please"]


def test_a_server_that_fails(trace: Path) -> None:
    with stub() as server:
        server.manner = "refused"
        done = run(trace, server.url, "--json", "-", "--time-scale", "0")
        assert done.exit_code == 2 and "No turn was answered" in done.stderr and "HTTP 429" in done.stderr
        assert json.loads(done.stdout)["all"]["refused"] == 6
        server.manner = "stalled"
        found = json.loads(run(trace, server.url, "--json", "-", "--time-limit", "0.3").stdout)
        assert found["traffic"]["unfinished"] == 6 and found["all"]["turns"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--server", "other"), "tokenspeed, vllm"),
        (("--field", "top_k"), "NAME=JSON"),
        (("--field", "top_k=x"), "NAME=JSON"),
        (("--session-header", "a b"), "not a header"),
        (("--trace-format", "other"), "claude-code"),
    ],
)
def test_options_that_are_none(trace: Path, arguments: tuple[str, ...], message: str) -> None:
    done = run(trace, "http://127.0.0.1:9", *arguments)
    assert done.exit_code == 2 and message in done.stderr and "Traceback" not in done.output


def test_kinds_of_servers() -> None:
    assert kind_of("vllm").token_ids and kind_of("llamacpp").lengths and not kind_of("somebody").lengths


def test_a_conversation_in_text() -> None:
    def prompt(*spans: tuple[int, int]) -> Prompt:
        return Prompt(np.array([content for content, _ in spans], np.uint64), np.cumsum([tokens for _, tokens in spans]))

    session = Session("s", (Turn(prompt((1, 4)), 2), Turn(prompt((1, 4), (2, 6)), 3), Turn(prompt((1, 2), (9, 3)), 1)))
    talk, tokens = TextConversation(session, Vocabulary(), "traced", chat=False), SessionTokens(session)
    assert talk.ask(0) == {"prompt": words(tokens.prompt(0))}
    talk.answered(0, Exchange())
    assert talk.ask(1) == {"prompt": words(tokens.prompt(1))}
    talk.answered(1, Exchange())
    assert talk.ask(2) == {"prompt": words(tokens.prompt(2))}
