"""One plan, measured by its first rank, which starts the others."""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tokenspeed.plans.integrity import ranks
from tokenspeed.plans.perf_model import StepWork, step_cost, step_seconds
from tokenspeed.plans.reader import Plan
from tokenspeed.plans.schema import Manifest

STEPS, WARM_STEPS, PROMPTS = 40, 8, 4
NEW_TOKENS, TOP = 24, 8
SERVE = "from tokenspeed.runtime.run_cli import main; main()"


def of_plan(arguments: argparse.Namespace) -> None:
    if arguments.one == "ceilings":
        say({"ceilings": dict(zip(("read_bytes_per_second", "flops_per_second"), ceilings(), strict=True))})
        return
    path = Path(arguments.one)
    with Plan.open(path) as plan:
        measured = OnePlan(plan, path, arguments.rate)
        for wanted, part in (
            (arguments.verify, measured.verify),
            (arguments.start, measured.starts),
            (arguments.lost and measured.ranks > 1, measured.lost),
        ):
            if wanted:
                with guarded(path.name, part.__name__):
                    part()
        with guarded(path.name, "steps"):
            measured.steps(arguments)
    sys.stdout.flush()
    os._exit(0)  # what hangs at the end has nothing more to say


def say(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


@contextmanager
def guarded(plan: str, part: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        say({"plan": plan, "part": part, "failed": f"{type(error).__name__}: {str(error)[:800]}"})


class OnePlan:
    def __init__(self, plan: Plan, path: Path, rate: float | None) -> None:
        self.plan, self.path, self.rate = plan, path, rate
        self.manifest: Manifest = plan.manifest
        self.ranks = ranks(plan.manifest)

    def tell(self, what: str, value: float, unit: str, **more: Any) -> None:
        mesh = ",".join(f"{axis.name}={axis.size}" for axis in self.manifest.mesh if axis.size > 1)
        line = {
            "plan": self.path.name,
            "ranks": self.ranks,
            "mesh": mesh,
            "measured": what,
            "value": round(value, 4),
            "unit": unit,
        }
        say({**line, **more})

    def steps(self, arguments: argparse.Namespace) -> None:
        """What the executor of all ranks does."""
        from tokenspeed.runtime.benchmark.all_ranks import open_all_ranks
        from tokenspeed.runtime.benchmark.fixed_steps import StepMaker, admit_greedy, run_ahead

        start = last = time.perf_counter()
        phases: dict[str, float] = {}

        def report(phase: str) -> None:
            nonlocal last
            now = time.perf_counter()
            phases[phase], last = round(now - last, 3), now

        before = used_bytes()
        executor = open_all_ranks(self.plan, self.path, arguments.same or "dummy", None, report)
        taken = [after - already for after, already in zip(used_bytes(), before, strict=True)]
        planned = self.manifest.memory
        say({"plan": self.path.name, "loaded": phases, "seconds": round(time.perf_counter() - start, 2)})
        say(
            {"plan": self.path.name, "bytes_taken": taken, "bytes_planned": planned.total, "communication": planned.communication}
        )
        maker = StepMaker(self.manifest)
        admit_greedy(executor, self.manifest.schedule.max_sequences)
        for point in arguments.point:
            with guarded(self.path.name, point):
                batch, context = map(int, point.split(":"))
                seconds = run_ahead(executor, list(maker.decode(batch, context, STEPS)))[WARM_STEPS:]
                least = self._least(batch, context)
                predicted = step_seconds(self.manifest.performance, StepWork(batch, batch * context))
                self.tell(f"decode {point}", statistics.median(seconds) * 1e3, "ms", fastest=round(min(seconds) * 1e3, 3),
                          least=least and round(least * 1e3, 3), predicted=round(predicted * 1e3, 3))  # fmt: skip
        for tokens in arguments.prompt:
            with guarded(self.path.name, f"prompt {tokens}"):
                found = []
                for _ in range(PROMPTS):
                    begun = time.perf_counter()
                    run_ahead(executor, list(maker.prompt(tokens)))
                    found.append(time.perf_counter() - begun)
                self.tell(f"prompt {tokens}", statistics.median(found[1:]) * 1e3, "ms", fastest=round(min(found) * 1e3, 2))
        if arguments.same:
            with guarded(self.path.name, "same"):
                self._tokens(executor)
        for served in arguments.serve:
            with guarded(self.path.name, served):
                self._serve(executor, served)
        say({"plan": self.path.name, "bytes_taken_at_the_end": [a - b for a, b in zip(used_bytes(), before, strict=True)]})
        executor.close()

    def _least(self, batch: int, context: int) -> float | None:
        """Seconds that reading a rank's weights and its part of the KV once takes."""
        if self.rate is None:
            return None
        kv = batch * context * self.manifest.kv.bytes_per_block / self.manifest.kv.block_tokens
        return (step_cost(self.manifest.performance, batch).weight_bytes + kv) / self.rate

    def _tokens(self, executor: Any) -> None:
        """Greedy tokens of three prompts together, and the largest logarithms at each."""
        from tokenspeed.runtime.fixed_batch import Rows, equal_places, fixed_batch
        from tokenspeed.runtime.protocol import SamplingParameters

        random = np.random.default_rng(4)
        prompts = [random.integers(0, self.manifest.model.vocabulary, count).tolist() for count in (5, 130, 64)]
        sampling = SamplingParameters(max_tokens=NEW_TOKENS, temperature=0.0, ignore_eos=True, logprobs=TOP)
        blocks, size = 4, self.manifest.kv.block_tokens
        tokens: list[int] = []
        top: list[list[float]] = []
        for slot, prompt in enumerate(prompts):
            executor.admit(slot, sampling, (), np.array(prompt, np.int32), np.empty(0, np.int32))
        step = [Rows(slot, 0, prompt) for slot, prompt in enumerate(prompts)]
        for at in range(NEW_TOKENS + 1):
            result = executor.start(fixed_batch(step, blocks, size, windows=equal_places(self.manifest.kv, len(prompts))))()
            tokens += result.tokens.tolist()
            # said, not left to the device: of a pipeline's stages only the last one knows what was sampled
            step = [Rows(slot, len(prompt) + at, [tokens[slot - len(prompts)]]) for slot, prompt in enumerate(prompts)]
            top += [[value for _, value in item.top] for item in result.logprobs if item is not None]
        say({"tokens_of": self.path.name, "tokens": tokens, "top": [[round(value, 5) for value in values] for values in top]})

    def _serve(self, executor: Any, served: str) -> None:
        from tokenspeed.runtime.benchmark.throughput import ThroughputOptions, run_closed_loop

        requests, concurrency, prompt, output = map(int, served.split(":"))
        options = ThroughputOptions("dummy", None, requests, concurrency, prompt, output, 0.0)
        report = run_closed_loop(self.manifest, executor, options, lambda _text: None)
        self.tell(f"serve {served}", report.output_tokens_per_second, "tokens/s", wall=round(report.wall_seconds, 2),
                  tpot_ms=round(report.tpot_seconds.p50 * 1e3, 2), ttft_s=round(report.ttft_seconds.p50, 3),
                  executor_share=round(report.executor_share, 3), scheduler_ms=round(report.scheduler_seconds_per_step * 1e3, 3),
                  rows_per_step=round(report.rows_per_step, 1))  # fmt: skip

    def verify(self) -> None:
        """Golden cases on all ranks, by the command."""
        command = [
            sys.executable,
            "-P",
            "-c",
            SERVE,
            str(self.path),
            "--verify",
            "--weights",
            "dummy",
            "--prompt",
            "a",
            "--max-tokens",
            "1",
        ]
        begun = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=180)
        say({"plan": self.path.name, "verify": done.returncode, "seconds": round(time.perf_counter() - begun, 2),
             "said": (done.stderr or done.stdout)[-600:]})  # fmt: skip

    def starts(self) -> None:
        from tokenspeed.runtime.benchmark.startup import StartupOptions, start_once

        options = StartupOptions(self.path, "dummy", None, "The capital of France is", 1)
        for number in range(2):
            start = start_once(options)
            self.tell(f"start {number + 1}", start.first_token_seconds, "s", phases=start.phases)

    def lost(self) -> None:
        """A rank is killed while nothing runs, and in the middle of a long answer."""
        for busy in (False, True):
            self._lose(busy)

    def _lose(self, busy: bool) -> None:
        import httpx

        log = Path(f"/tmp/lost-{os.getpid()}-{busy}")
        command = [sys.executable, "-P", "-c", SERVE, str(self.path), "--weights", "dummy", "--port", "0", "--json"]
        with log.open("wb") as file:
            server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)
        asked: subprocess.Popen[bytes] | None = None
        try:
            until(lambda: '"url"' in log.read_text() or server.poll() is not None)
            told = json.loads(next(line for line in log.read_text().splitlines() if '"url"' in line))
            url, request = told["url"], {"model": told["model"], "prompt": [1, 2, 3], "max_tokens": 8, "temperature": 0}
            answer = httpx.post(f"{url}/completions", json=request, timeout=60).json()
            if busy:
                longer = json.dumps({**request, "max_tokens": 1500, "ignore_eos": True})
                code = f"import httpx; print(httpx.post({url!r} + '/completions', content={longer!r}, headers={{'content-type': 'application/json'}}, timeout=60).text[:300])"  # noqa: E501
                asked = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
                time.sleep(1.5)
            others = rank_processes(self.path)
            begun = time.perf_counter()
            os.kill(others[0], signal.SIGKILL)
            until(lambda: "rank 1" in log.read_text(), 70)
            noticed = time.perf_counter() - begun
            status = None
            with suppress(httpx.HTTPError):
                status = httpx.get(f"{url.removesuffix('/v1')}/health", timeout=5).status_code
            until(lambda: not rank_processes(self.path), 30)
            time.sleep(1)
            said = next((line for line in log.read_text().splitlines() if "rank 1" in line), "")
            text = "" if asked is None else asked.communicate(timeout=30)[0].decode()
            found = {"noticed_seconds": round(noticed, 2), "health": status, "said": said[:500], "request_got": text[:300]}
            line = {"plan": self.path.name, "lost_rank": 1, "busy": busy, "answered": answer.get("usage")}
            say({**line, **found, "bytes_held_after": used_bytes()})
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def rank_processes(plan: Path) -> list[int]:
    """Processes of ranks other than the first that run a plan."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (folder / "cmdline").read_bytes()
            if b"rank_process" in line and str(plan.name).encode() in line:
                found.append(int(folder.name))
    return found


def until(condition: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"it did not happen within {seconds:.0f} s")
        time.sleep(0.02)


def used_bytes() -> list[int]:
    """Memory in use of every device of this host, none where the system's tool is not there."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    with suppress(OSError, subprocess.CalledProcessError):
        return [int(line) << 20 for line in subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()]
    return []


def ceilings() -> tuple[float, float]:
    """Bytes per second read, bf16 FLOP/s."""
    import torch

    def fastest(run: Callable[[], object], repeats: int = 12) -> float:
        found: list[float] = []
        for _ in range(repeats):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            found.append(start.elapsed_time(end) / 1e3)
        return min(found)

    data = torch.ones(4 << 30, dtype=torch.bfloat16, device="cuda")
    read = data.nbytes / fastest(partial(torch.sum, data, dtype=torch.float32))
    del data
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return read, 2 * 8192**3 / fastest(lambda: a @ b)
