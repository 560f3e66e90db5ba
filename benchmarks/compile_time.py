"""Compile time and peak memory of shape-only plans, each in a process of its own; and that depth costs little. Table and JSON.

    python benchmarks/compile_time.py [--only NAME ...] [--json FILE]
    python benchmarks/compile_time.py --model llama-3.1-70b qwen3-235b-a22b deepseek-v3 --target h200:8

Wall time is from the start of tokenspeed-compile to its end, imports included; memory is the largest resident set of that
process (getrusage). The depth series compiles one config with 8, 32 and 80 layers.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table
from tokenspeed.plans.units import format_bytes
from tokenspeed.runtime.benchmark.environment import environment

CONFIGS = Path(__file__).parent.parent / "examples" / "configs"
MODELS = ("llama-3.1-8b", "qwen3-8b", "llama-3.1-70b")
DTYPES = ("f32", "bf16")
DEPTHS = (8, 32, 80)
DEPTH_MODEL = "llama-3.1-8b"
TIME_LIMIT_SECONDS = 600
_COMMAND = "from tokenspeed.compiler.cli import main; main()"


@dataclass(frozen=True)
class Compiled:
    """`error` is what the compiler said when it refused."""

    name: str
    layers: int
    dtype: str
    seconds: float
    peak_bytes: int
    plan_bytes: int
    phases: dict[str, float]
    error: str = ""


def compile_once(name: str, config: dict[str, object], dtype: str, target: str, folder: Path) -> Compiled:
    """Compile one config, without weights."""
    source, plan, said = folder / f"{name}.json", folder / f"{name}.bin", folder / "said.json"
    source.write_text(json.dumps(config))
    arguments = [str(source), "-o", str(plan), "--target", target, "--dtype", dtype, "--json"]
    with said.open("w") as output, (folder / "errors.txt").open("w") as errors:
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-P", "-c", _COMMAND, *arguments], stdout=output, stderr=errors)
        code, usage = _wait(process)
        seconds = time.perf_counter() - start
    error = (folder / "errors.txt").read_text().strip()[-400:] if code else ""
    summary = {} if code else json.loads(said.read_text())
    layers = config["num_hidden_layers"]
    assert isinstance(layers, int)
    peak = usage.ru_maxrss * 1024
    return Compiled(name, layers, dtype, seconds, peak, summary.get("bytes", 0), summary.get("seconds", {}), error)


def _wait(process: subprocess.Popen[bytes]) -> tuple[int, resource.struct_rusage]:
    """Exit code and resources of this child alone; it is killed when it takes too long."""
    deadline = time.monotonic() + TIME_LIMIT_SECONDS
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return process.returncode, usage
        if time.monotonic() > deadline:
            process.kill()
        time.sleep(0.02)


def cases(only: list[str]) -> list[tuple[str, dict[str, object], str]]:
    """Name, config and dtype of each compile."""
    found = []
    for model in MODELS:
        config = json.loads((CONFIGS / f"{model}.json").read_text())
        found += [(model, config, dtype) for dtype in DTYPES]
    config = json.loads((CONFIGS / f"{DEPTH_MODEL}.json").read_text())
    found += [(f"{DEPTH_MODEL}-{depth}-layers", config | {"num_hidden_layers": depth}, "bf16") for depth in DEPTHS]
    return [case for case in found if not only or any(word in case[0] for word in only)]


def chosen(models: list[str]) -> list[tuple[str, dict[str, object], str]]:
    """The same for configs by name, in bfloat16."""
    return [(model, json.loads((CONFIGS / f"{model}.json").read_text()), "bf16") for model in models]


def table(results: list[Compiled]) -> Table:
    shown = Table("config", "layers", "dtype", "compile", "peak memory", "plan", "slowest phases")
    for item in results:
        slowest = sorted(item.phases, key=lambda name: -item.phases[name])[:3]
        phases = ", ".join(f"{name} {item.phases[name]:.1f}" for name in slowest)
        sizes = (format_bytes(item.peak_bytes), format_bytes(item.plan_bytes))
        shown.add_row(item.name, str(item.layers), item.dtype, f"{item.seconds:.1f} s", *sizes, item.error or phases)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="cpu-avx2")
    parser.add_argument("--only", nargs="*", default=[], help="only configs whose name contains one of these")
    parser.add_argument("--model", nargs="*", default=[], help="these of examples/configs, in bf16, instead of the series")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    options = parser.parse_args()
    surroundings, results = environment(), []
    console = Console(width=None if sys.stdout.isatty() else 160)
    with tempfile.TemporaryDirectory() as folder:
        for name, config, dtype in chosen(options.model) or cases(options.only):
            print(f"{name} {dtype}", file=sys.stderr, flush=True)
            results.append(compile_once(name, config, dtype, options.target, Path(folder)))
    machine = f"{surroundings.cores} cores of {surroundings.cpu}, load {surroundings.load}"
    console.print(f"{surroundings.date}, {machine}, for {options.target}")
    console.print(table(results))
    if options.json:
        report = {"environment": surroundings, "results": [asdict(item) for item in results]}
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")


if __name__ == "__main__":
    main()
