"""Plans of a model for one and for several devices of this host: decoding, prompts, serving, starts, and what links carry.

    python benchmarks/multi_gpu.py PLAN [PLAN]... [--point BATCH:CONTEXT]... [--prompt TOKENS]...
        [--serve REQUESTS:CONCURRENCY:IN:OUT]... [--start] [--verify] [--same DIRECTORY] [--lost] [--collectives FOLDER]
        [--peer-command COMMAND]

Plans carry their number of ranks; each is measured in a process of its own, the first rank, which starts the others. Weights are
made up, unless --same gives a checkpoint. What is measured, in this order:

- ceilings of the first device: bytes per second that a sum over 8 GB reads, FLOP/s of a square bf16 product;
- --collectives: benchmarks/collectives.py measure FOLDER: the library alone and kernels of ours, by message size;
- for each plan: --verify, `tokenspeed-run --verify` (golden cases, on all ranks); memory planned and taken on the first device;
  decode steps and prompts as the engine runs them, each started before the one ahead of it is waited for, beside the least that
  a rank's own bytes (weights and KV, read once) take at the ceiling; --serve: the engine in a closed loop, no HTTP;
- --start: from the start of `tokenspeed-run PLAN --prompt` to its first token, twice;
- --same: greedy tokens and the logits' logarithms of a few prompts, of all plans the same, from the checkpoint's weights;
- --lost: a server's second rank is killed between and in the middle of requests: what is said, after how long, and what stays;
- --peer-command: prints for itself; it is given the points in the environment, MULTI_GPU_POINTS and MULTI_GPU_PROMPTS.

What fails says why, and the next is measured. Medians over steps of one run. Prints JSON lines, then a table.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
Line = dict[str, Any]


def main() -> int:
    arguments = _arguments()
    if arguments.one:
        from ranks.one_plan import of_plan

        of_plan(arguments)
        return 0
    lines = [say(environment())]
    lines += run([sys.executable, str(HERE / "multi_gpu.py"), "--one", "ceilings"])
    rate = next((line["ceilings"]["read_bytes_per_second"] for line in lines if "ceilings" in line), None)
    if arguments.collectives:
        lines += run([sys.executable, str(HERE / "collectives.py"), "measure", arguments.collectives])
    for plan in arguments.plans:
        lines += run(_of_plan(arguments, plan, rate))
    if arguments.same:
        lines.append(say(_compared([line for line in lines if "tokens_of" in line])))
    if arguments.peer_command:
        given = {"MULTI_GPU_POINTS": " ".join(arguments.point), "MULTI_GPU_PROMPTS": " ".join(map(str, arguments.prompt))}
        subprocess.run(shlex.split(arguments.peer_command), env=os.environ | given, check=False)
    print(table(lines))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plans", nargs="*")
    parser.add_argument("--point", action="append", default=[], help="BATCH:CONTEXT of decode steps")
    parser.add_argument("--prompt", action="append", default=[], type=int, help="tokens of a prompt")
    parser.add_argument("--serve", action="append", default=[], help="REQUESTS:CONCURRENCY:IN:OUT")
    parser.add_argument("--start", action="store_true")
    parser.add_argument("--verify", action="store_true")
    parser.add_argument("--same", metavar="DIRECTORY", help="a checkpoint whose tokens all plans must give alike")
    parser.add_argument("--lost", action="store_true")
    parser.add_argument("--collectives", metavar="FOLDER")
    parser.add_argument("--peer-command", help="a further arm, e.g. an engine that is installed elsewhere")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--rate", type=float, help=argparse.SUPPRESS)
    return parser.parse_args()


def _of_plan(arguments: argparse.Namespace, plan: str, rate: float | None) -> list[str]:
    command = [sys.executable, str(HERE / "multi_gpu.py"), "--one", plan]
    for name in ("point", "prompt", "serve"):
        for value in getattr(arguments, name):
            command += [f"--{name}", str(value)]
    for name in ("start", "verify", "lost"):
        command += [f"--{name}"] if getattr(arguments, name) else []
    command += ["--same", arguments.same] if arguments.same else []
    return [*command, "--rate", str(rate)] if rate else command


def environment() -> Line:
    """Devices as the system's tool names them, and what runs on them."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        devices = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().splitlines()
    except (OSError, subprocess.CalledProcessError) as error:
        devices = [str(error)]
    return {
        "devices": devices,
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def run(command: list[str]) -> list[Line]:
    """The JSON lines that a process prints, which are printed on; what it says besides goes where our errors go."""
    found = []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for text in process.stdout:
        print(text, end="", flush=True)
        if text.startswith("{"):
            found.append(json.loads(text))
    if process.wait():
        found.append(say({"failed": f"exit code {process.returncode}", "command": " ".join(command)}))
    return found


def say(what: Line) -> Line:
    print(json.dumps(what), flush=True)
    return what


def _compared(lines: list[Line]) -> Line:
    """How far the plans' tokens and logarithms are from the first one's."""
    if not lines:
        return {"same": "no tokens"}
    first, others = lines[0], lines[1:]
    found = []
    for line in others:
        differ = sum(a != b for a, b in zip(first["tokens"], line["tokens"], strict=True))
        far = max(
            abs(a - b) for ours, theirs in zip(first["top"], line["top"], strict=True) for a, b in zip(ours, theirs, strict=True)
        )
        found.append({"plan": line["tokens_of"], "tokens_that_differ": differ, "of": len(first["tokens"]), "logprobs_apart": far})
    return {"same_as": first["tokens_of"], "plans": found}


def table(lines: list[Line]) -> str:
    """What was measured of each plan, a row for each; efficiency is over the first plan of one rank."""
    rows: dict[str, dict[str, Line]] = {}
    plans: dict[str, Line] = {}
    for line in lines:
        if "plan" in line and "measured" in line:
            rows.setdefault(line["measured"], {})[line["plan"]] = line
            plans.setdefault(line["plan"], line)
    text = [f"{'':28}" + "".join(f"{name[:30]:>32}" for name in plans)]
    for what, of_plans in rows.items():
        alone = next((line for line in of_plans.values() if line["ranks"] == 1), None)
        cells = []
        for name in plans:
            line = of_plans.get(name)
            cells.append(f"{'' if line is None else _cell(line, alone):>32}")
        text.append(f"{what[:28]:28}" + "".join(cells))
    return "\n".join(text)


def _cell(line: Line, alone: Line | None) -> str:
    shown = f"{line['value']:g} {line['unit']}"
    if line.get("least"):
        shown += f" {line['least'] / line['value']:.0%} of bound"
    if alone is not None and line["ranks"] > 1:
        gain = alone["value"] / line["value"] if line["unit"] in {"ms", "s"} else line["value"] / alone["value"]
        shown += f" eff. {gain / line['ranks']:.0%}"
    return shown


if __name__ == "__main__":
    sys.exit(main())
