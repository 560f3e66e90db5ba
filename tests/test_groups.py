"""Acceptance: ranks with sequences of their own (axis dp) compute and serve what one rank does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from tokenspeed.compiler.frontends.source import open_model
from tokenspeed.compiler.options import CompileOptions
from tokenspeed.compiler.pipeline import compile_model
from tokenspeed.ir import module as modules
from tokenspeed.ir.module import context
from tokenspeed.passes.placing.pins import Pin
from tokenspeed.passes.schedule import TrafficProfile
from tokenspeed.plans.writer import write_plan
from transformers import PreTrainedModel

from .mesh import laid_out, many_rows, mesh, mesh_difference
from .test_families import CHUNK, CONTEXT, SEQUENCES, TOLERANCE
from .test_served_ranks import SERVE, processes, until
from .tiny_models import FAMILIES, MIXTURES, MORE_FAMILIES, build, remember_traces, save

EVERY = {**FAMILIES, **MORE_FAMILIES, **MIXTURES}
SHARED = list(range(1, 66))
"""A prompt of more than one unit of the prefix cache."""


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        remember_traces(patch)
        yield
    torch.set_num_threads(threads)


def options(parallel: str = "auto") -> CompileOptions:
    return CompileOptions(
        dtype="f32",
        max_context=CONTEXT,
        max_sequences=SEQUENCES,
        prefill_chunk=CHUNK,
        traffic=TrafficProfile(prompt_tokens=CONTEXT, output_tokens=CONTEXT),
        parallel=parallel,
        placement=(Pin("*", "cut"),),
    )


def greedy(model: PreTrainedModel, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
    """The likeliest tokens, and the logarithms of their probabilities."""
    tokens, found = list(prompt), []
    with torch.no_grad():
        for _ in range(count):
            best, token = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].log_softmax(-1).max(-1)
            tokens.append(int(token))
            found.append(float(best))
    return tokens[len(prompt) :], found


@pytest.mark.parametrize(("name", "parallel"), [("llama", "dp=2,tp=2"), ("gpt_oss", "dp=2")])
def test_groups_compute_and_serve_what_one_rank_does(name: str, parallel: str, tmp_path: Path) -> None:
    """Interpreted, with other sequences and other numbers of rows in each group; and over HTTP, with more requests in one group
    than in the other, ends at different times, and a prefix that is used again. Where there are experts, groups share them out,
    so that one without requests takes part for the other."""
    model = build(EVERY[name])
    directory = save(model, tmp_path / "model")
    with context():
        state = compile_model(open_model(directory), options(parallel), lambda _phase, _state: None)
        assert mesh_difference(state.traced, state.ir_texts["raise"], state.mesh) <= TOLERANCE
        if name in MIXTURES:  # where rows go to few of the ranks they are sent to those alone
            assert "ts.dispatch" in str(laid_out(modules.parse(state.ir_texts["raise"]), mesh(dp=4), found=many_rows()))
            assert mesh_difference(state.traced, state.ir_texts["raise"], mesh(dp=4), judged=many_rows()) <= TOLERANCE
    assert state.manifest is not None and state.step is not None
    met = {call.function for call in state.step.calls if call.attributes.get("axis") == "dp"}
    assert met == ({"all_gather", "reduce_scatter"} if name in MIXTURES else set())
    plan = tmp_path / "plan.bin"
    write_plan(plan, state.manifest, state.entries)
    log = tmp_path / "log"
    command = [sys.executable, "-c", SERVE, str(plan), "--weights", str(directory), "--port", "0", "--json", "--verify"]
    with log.open("wb") as file:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    try:
        until(lambda: '"url"' in log.read_text())
        told = json.loads(next(line for line in log.read_text().splitlines() if '"url"' in line))
        prompts = np.random.default_rng(3).integers(0, 160, (5, 9)).tolist()
        asked = [(prompt, 3 + 4 * (number % 2)) for number, prompt in enumerate(prompts)]

        def check(prompt: list[int], count: int) -> tuple[list[int], int]:
            """Tokens, which have to be those of transformers, and how many of the prompt's came from the cache."""
            body = {"model": told["model"], "prompt": prompt, "max_tokens": count, "temperature": 0, "ignore_eos": True}
            answer = httpx.post(f"{told['url']}/completions", json=body | {"return_token_ids": True, "logprobs": 1}, timeout=60)
            assert answer.status_code == 200, answer.text
            found = answer.json()
            choice = found["choices"][0]
            tokens, logprobs = greedy(model, prompt, count)
            assert choice["token_ids"] == tokens
            np.testing.assert_allclose(choice["logprobs"]["token_logprobs"], logprobs, atol=TOLERANCE)
            return tokens, found["usage"]["prompt_tokens_details"]["cached_tokens"]

        with ThreadPoolExecutor(len(asked)) as pool:
            assert [cached for _, cached in pool.map(lambda one: check(*one), asked)] == [0] * len(asked)
        first, _ = check(SHARED, 2)
        _, cached = check([*SHARED, *first], 3)
        assert cached == 64
    finally:
        server.terminate()
        server.wait(60)
    until(lambda: not processes(plan, "rank_process"))
    assert server.returncode == 0, log.read_text()
