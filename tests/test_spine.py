"""The spine as a user meets it: a model directory, compiled, served by `tokenspeed-run`, asked by the openai client."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest
import torch
from openai.types.chat import ChatCompletionUserMessageParam
from transformers import LlamaConfig, LlamaForCausalLM

from .runtime.entrypoint.tiny_tokenizers import byte_level

TEMPLATE = "{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}"
VOCABULARY = 320
CONSOLE = Path(sys.executable).parent


@dataclass(frozen=True)
class Spine:
    model: Path
    plan: Path


@pytest.fixture(scope="module")
def spine(tmp_path_factory: pytest.TempPathFactory) -> Spine:
    """A tiny random llama with a tokenizer, compiled by the command line."""
    folder = tmp_path_factory.mktemp("spine")
    model = folder / "tiny-llama"
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        eos_token_id=None,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(model)
    (model / "tokenizer.json").write_bytes(byte_level())
    (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    plan = folder / "plan.bin"
    done = _run("tokenspeed-compile", model, "-o", plan, "--dtype", "f32", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["plan"] == str(plan)
    return Spine(model, plan)


def _run(*command: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    name, *rest = map(str, command)
    return subprocess.run([CONSOLE / name, *rest], capture_output=True, text=True, timeout=timeout, check=False)


@contextmanager
def _server(spine: Spine, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [str(CONSOLE / "tokenspeed-run"), str(spine.plan), "--weights", str(spine.model), "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if "http://" in line:
                url = "http://" + line.split("http://", 1)[1].split()[0].removesuffix("/v1")
                _wait_until_ready(url)
                yield process, url
                break
    finally:
        process.kill()
        process.wait()


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if httpx.get(f"{url}/ready").status_code == 200:
            return
        time.sleep(0.1)
    raise AssertionError("the server did not become ready")


def test_verify_replays_the_goldens(spine: Spine) -> None:
    done = _run("tokenspeed-plan", "verify", spine.plan, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["passed"] and report["goldens"]


def test_prompt_prints_text_and_exits(spine: Spine) -> None:
    options = ("--weights", spine.model, "--max-tokens", "8", "--temperature", "0")
    first = _run("tokenspeed-run", spine.plan, "--prompt", "hello there", *options)
    again = _run("tokenspeed-run", spine.plan, "--prompt", "hello there", *options)
    assert first.returncode == 0, first.stderr
    assert first.stdout == again.stdout != ""


def test_weights_of_another_model_are_refused(spine: Spine, tmp_path: Path) -> None:
    other = tmp_path / "other"
    torch.manual_seed(2)
    LlamaForCausalLM(LlamaConfig.from_pretrained(spine.model)).save_pretrained(other)
    done = _run("tokenspeed-run", spine.plan, "--weights", other, "--prompt", "x")
    assert done.returncode == 5
    assert "not those the plan is bound to" in done.stderr and "Traceback" not in done.stderr


def test_openai_client_and_drain(spine: Spine) -> None:
    with _server(spine, "--api-key", "secret") as (process, url):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="secret")
        model = client.models.list().data[0].id
        whole = client.completions.create(model=model, prompt="hello", max_tokens=12, temperature=0)
        stream = client.completions.create(model=model, prompt="hello", max_tokens=12, temperature=0, stream=True)
        assert "".join(part.choices[0].text for part in stream if part.choices) == whole.choices[0].text
        message: ChatCompletionUserMessageParam = {"role": "user", "content": "long " * 40}
        first = client.chat.completions.create(model=model, messages=[message], max_tokens=4, temperature=0)
        second = client.chat.completions.create(model=model, messages=[message], max_tokens=4, temperature=0)
        assert first.choices[0].message.content == second.choices[0].message.content
        assert second.usage is not None and second.usage.prompt_tokens_details is not None
        cached = second.usage.prompt_tokens_details.cached_tokens
        assert cached is not None and cached >= 64 and cached % 64 == 0
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{url}/v1", api_key="wrong").models.list()
        last = client.completions.create(model=model, prompt="hello", max_tokens=64, temperature=0, stream=True)
        parts = [next(last)]  # which may be all there are
        process.send_signal(signal.SIGTERM)
        parts += last
        assert parts[-1].choices[0].finish_reason == "length"
        assert process.wait(timeout=60) == 0
