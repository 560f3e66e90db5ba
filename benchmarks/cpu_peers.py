"""This project against other CPU engines in one run: same model, same threads, nearest precision, arms taking turns.

    python benchmarks/cpu_peers.py --install PEERS      (once: a virtual environment for each peer under PEERS)
    python benchmarks/cpu_peers.py --peers PEERS --cache CACHE [--quick] [--json FILE]

Peers: llama.cpp, OpenVINO (its plugin on a stateful model, and OpenVINO GenAI's continuous batching), onnxruntime-genai,
transformers eager. Models: SmolLM2-135M (real weights), and the shape of Qwen3-0.6B with made-up weights; both and all their
converted forms are made once under CACHE (about 6 GB). Measured: decode at several batches, prefill, process start to
first token, peak resident memory. Each rate also as a share of a bound: decode of (weights + keys and values) / read
bandwidth, prefill of floating-point operations / GEMM rate, both probed just before. Each arm is a process of its own,
stopped while others run. A peer that is not there, or fails, is named with its reason.

Measure on an otherwise idle machine; figures whose threads had to wait for a core are marked.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from peers.arms import PEERS, PRECISIONS, Absent, Arm, arm
from peers.checkpoints import MODELS, checkpoint, configuration
from peers.installation import install
from peers.measuring import Effort, MachineProbe, compare
from peers.report import ArmReport, ModelReport, PeersReport, tables
from peers.work import Shape, Work
from rich.console import Console
from tokenspeed.plans.errors import TokenspeedError
from tokenspeed.runtime.benchmark.environment import environment
from tokenspeed.runtime.benchmark.startup import StartupOptions, start_once

_QUICK_SECONDS, _FULL_SECONDS = 90.0, 3600.0
_HAS_TOKENIZER = "smollm2-135m"


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def _arms(options: argparse.Namespace, precision: str, model: Path) -> tuple[list[Arm], list[ArmReport]]:
    """Who takes part at a precision, and reports of those who cannot."""
    present, absent = [], []
    for peer in options.only or PEERS:
        if precision not in PEERS[peer].precisions:
            continue
        _say(f"{peer} {precision}: making its model file, unless it is there")
        try:
            present.append(arm(peer, precision, model, options.peers))
        except Absent as error:
            absent.append(ArmReport.absent(peer, precision, error.what))
    return present, absent


def run(options: argparse.Namespace) -> Iterator[PeersReport]:
    """The report so far, after each model and precision; the last one is whole."""
    surroundings = environment(options.threads)
    works = [Work("decode", batch, options.context) for batch in options.batches]
    works += [Work("prefill", tokens, tokens) for tokens in options.prefill]
    cache = options.cache.resolve()
    prepared = {}
    for model in options.models:
        path = checkpoint(model, cache)
        prepared[model] = path, {precision: _arms(options, precision, path) for precision in options.precisions}
    deadline = time.monotonic() + (_QUICK_SECONDS if options.quick else _FULL_SECONDS)
    starts: dict[str, float] = {}
    reports: list[ModelReport] = []
    effort = Effort(options.threads, options.rounds, options.steps, options.starts, deadline)
    probe = MachineProbe(options.threads, cache / "logs" / "probe.log")
    try:
        for model, (path, teams) in prepared.items():
            shape, logs = Shape.of(configuration(path)), cache / "logs" / model
            found: list[ArmReport] = []
            reports.append(ModelReport(model, options.context, found))
            for present, absent in teams.values():
                found += [*compare(present, works, shape, effort, probe, logs, _say), *absent]
                yield PeersReport(surroundings, options.threads, options.rounds, reports, starts)
    finally:
        probe.close()
    starts.update(_command_start(options, prepared))
    yield PeersReport(surroundings, options.threads, options.rounds, reports, starts)


def _command_start(options: argparse.Namespace, prepared: dict[str, tuple[Path, dict]]) -> dict[str, float]:
    """The best of the starts of the real command, where the plan has a tokenizer."""
    if _HAS_TOKENIZER not in prepared:
        return {}
    plan = prepared[_HAS_TOKENIZER][0].with_name("bf16.plan.bin")
    if not plan.is_file():
        return {}
    start = StartupOptions(plan, None, options.threads, "The three primary colors are", 0)
    return {f"{_HAS_TOKENIZER} bf16": min(start_once(start).first_token_seconds for _ in range(options.starts))}


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _chosen(allowed: Sequence[str], text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in allowed]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not of {', '.join(allowed)}")
    return names


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", type=Path, metavar="DIR", help="install the peers under DIR and stop")
    parser.add_argument("--peers", type=Path, metavar="DIR", help="where --install put them")
    parser.add_argument("--cache", type=Path, default=Path(".cache/peers"), help="models and their converted forms")
    parser.add_argument("--quick", action="store_true", help="SmolLM2 only, two batches, one prompt length: about 2 minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report here as well")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", type=lambda text: _chosen(MODELS, text), default=list(MODELS))
    parser.add_argument("--precisions", type=lambda text: _chosen(PRECISIONS, text), default=list(PRECISIONS))
    parser.add_argument("--only", type=lambda text: _chosen(list(PEERS), text), help="of the peers, these")
    parser.add_argument("--batches", type=_numbers, default=[1, 4, 8, 16])
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--prefill", type=_numbers, default=[512, 4096])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=16, help="decode steps of a round")
    parser.add_argument("--starts", type=int, default=3, help="process starts; the best counts")
    options = parser.parse_args()
    if options.quick:
        options.models, options.batches, options.prefill = [_HAS_TOKENIZER], [1, 4], [512]
        options.rounds, options.steps, options.starts = 2, 8, 1
    return options


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # arms are ended, the JSON file stays
    try:
        if options.install is not None:
            install(options.install.resolve(), _say)
            return 0
        options.peers = options.peers and options.peers.resolve()
        report = None
        for report in run(options):
            if options.json is not None:
                options.json.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    except TokenspeedError as error:
        _say(f"error: {error}")
        return error.exit_code
    assert report is not None
    console = Console(width=None if sys.stdout.isatty() else 200)
    for part in tables(report):
        console.print(part, highlight=False, markup=False) if isinstance(part, str) else console.print(part)
    return 0


if __name__ == "__main__":
    sys.exit(main())
