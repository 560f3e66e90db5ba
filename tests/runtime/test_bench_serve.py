"""tokenspeed-bench serve against a small server on loopback that streams, stalls, lies and breaks off."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tokenspeed.plans.errors import UsageError
from tokenspeed.runtime import bench_cli
from tokenspeed.runtime.benchmark.http_stream import Server

USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 3}}


class StubServer(ThreadingHTTPServer):
    """Answers with `events`, the way `manner` says."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.told: dict[str, Any] = {}  # of its model
        self.manner = "chunked"
        self.events: list[object] = [*({"choices": [{"text": word}]} for word in "abcde"), {"choices": [], "usage": USAGE}]
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.deleted: list[str] = []
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def stub(self) -> StubServer:
        assert isinstance(self.server, StubServer)
        return self.server

    def do_GET(self) -> None:
        self.stub.keys.append(self.headers["Authorization"])
        self._whole(200, {"data": [{"id": "stub-model"} | self.stub.told]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.stub.bodies.append(body)
        match self.stub.manner:
            case "refused":
                self._whole(429, {"error": {"message": "too many"}})
            case "stalled":
                self._head(chunked=True)
                self.wfile.flush()
                self.stub.released.wait(20)
            case "huge chunk":
                self._head(chunked=True)
                self.wfile.write(b"fffffffff\r\n")
            case "endless line":
                self._head(chunked=False)
                self.wfile.write(b"data: " + b"x" * (9 << 20))
            case "broken off":
                self._head(chunked=True)
                self.wfile.write(b"400\r\ndata: {")
                self.close_connection = True
            case "no http":
                self.wfile.write(b"hello\r\n\r\n")
                self.close_connection = True
            case manner:
                self._stream(chunked=manner == "chunked")

    def do_DELETE(self) -> None:
        self.stub.deleted.append(self.path)
        self._whole(200, {})

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def _stream(self, chunked: bool) -> None:
        self._head(chunked)
        for event in [*self.stub.events, None]:
            data = b"data: " + (b"[DONE]" if event is None else json.dumps(event).encode()) + b"\n\n"
            # cut in two, so that events do not arrive whole
            for part in (data[:9], data[9:]):
                self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n" if chunked else part)
                self.wfile.flush()
        if chunked:
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True

    def _head(self, chunked: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header(*(("Transfer-Encoding", "chunked") if chunked else ("Connection", "close")))
        self.end_headers()

    def _whole(self, status: int, content: object) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def stub() -> Iterator[StubServer]:
    server = StubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


def run(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(bench_cli.main, ["serve", "--url", url, "--requests", "4", "--concurrency", "2", *arguments])


@pytest.mark.parametrize("manner", ["chunked", "until the connection ends"])
def test_figures_of_a_good_server(manner: str) -> None:
    with stub() as server:
        server.manner = manner
        done = run(f"{server.url}/v1", "--json", "--api-key", "secret", "--prompt-tokens", "9", "--output-tokens", "5")
        assert done.exit_code == 0, done.output
        report = json.loads(done.stdout)
        assert (report["succeeded"], report["failed"], report["unfinished"]) == (4, 0, 0)
        assert (report["prompt_tokens"], report["output_tokens"], report["cached_tokens"]) == (28, 20, 12)
        assert report["hit_rate"] == pytest.approx(3 / 7) and report["tokens_counted_by"] == "server"
        assert report["model"] == "stub-model" and report["ttft_seconds"]["count"] == 4
        assert report["inter_token_seconds"]["count"] == 16
        assert server.keys == ["Bearer secret"] and "secret" not in done.output
        assert {len(body["prompt"]) for body in server.bodies} == {9}
        assert all(body["max_tokens"] == 5 and body["stream"] and body["ignore_eos"] for body in server.bodies)
        assert len({tuple(body["prompt"]) for body in server.bodies}) == 4


def test_chat_at_a_rate_and_a_table() -> None:
    with stub() as server:
        server.events = [{"choices": [{"delta": {"role": "assistant"}}]}, {"choices": [{"delta": {"content": "hi"}}]}]
        done = run(server.url, "--api", "chat", "--rate", "500", "--model", "named", "--no-ignore-eos")
        assert done.exit_code == 0, done.output
        assert "TTFT" in done.stdout and "stream events" in done.stdout
        assert all(body["model"] == "named" and "ignore_eos" not in body for body in server.bodies)
        assert all(len(body["messages"][0]["content"].split()) == 512 for body in server.bodies)


@pytest.mark.parametrize(
    ("manner", "message"),
    [
        ("refused", "HTTP 429"),
        ("huge chunk", "chunk of impossible size"),
        ("endless line", "an event is too long"),
        ("broken off", "IncompleteReadError"),
        ("no http", "not HTTP"),
    ],
)
def test_a_server_that_fails(manner: str, message: str) -> None:
    with stub() as server:
        server.manner = manner
        done = run(server.url, "--json")
        report = json.loads(done.stdout)
        assert (done.exit_code, report["failed"], report["succeeded"]) == (2, 4, 0)
        assert message in report["errors"][0]
        assert "Traceback" not in done.output


@pytest.mark.parametrize("event", [{"error": {"message": "the engine failed"}}, {"choices": 5}, "no object"])
def test_a_bad_event_fails_its_request(event: object) -> None:
    with stub() as server:
        server.events = [event]
        assert json.loads(run(server.url, "--json").stdout)["failed"] == 4


def test_the_time_limits() -> None:
    with stub() as server:
        server.manner = "stalled"
        report = json.loads(run(server.url, "--json", "--request-timeout", "0.2").stdout)
        assert report["failed"] == 4 and "no end within" in report["errors"][0]
        report = json.loads(run(server.url, "--json", "--time-limit", "0.3").stdout)
        assert (report["failed"], report["unfinished"]) == (0, 4)


def test_no_server() -> None:
    with stub() as server:
        url = server.url
    done = run(url, "--json")
    assert done.exit_code == 1 and json.loads(done.stderr)["error"] == "ServerFailed"


@pytest.mark.parametrize("url", ["ftp://host", "http://", "host:80", "http://user@host", "http://host:port", "http://host/?a=b"])
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(UsageError):
        Server.parse(url)


def test_urls() -> None:
    assert Server.parse("https://host/base/v1/") == Server("host", 443, True, "/base")
    assert Server.parse("http://[::1]:8000") == Server("::1", 8000, False, "")
    assert "secret" not in repr(Server.parse("http://host", "secret"))
    with pytest.raises(UsageError):
        Server.parse("http://host", "key\r\nInjected: yes")
