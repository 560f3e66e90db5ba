"""What one device can show of plans for several ranks: that ranks agree, and what a rank's own part takes. Not what links carry.

    python benchmarks/one_device.py ranks PLAN [--alone PLAN --weights DIRECTORY]
    python benchmarks/one_device.py kernels FOLDER          # of benchmarks/collectives.py build
    python benchmarks/one_device.py loopback PLAN [--point BATCH:CONTEXT]... [--prompt TOKENS]...
    python benchmarks/one_device.py library

- ranks: a process for each rank, all on the first device, which it gives to one at a time. They map each other's memory as on
  several devices; what plans leave to the device's library goes through gloo, so that only decode buckets without any are
  captured. Golden cases on all ranks; greedy tokens and logits of a checkpoint beside those of a plan for one rank.
- kernels: the kernels of two ranks side by side in one process, in two streams: results against float64 and each other, and time.
- loopback: the first rank alone; what it sends to the second is what it reads from it, so that every kernel does its work, but
  nothing crosses a link, and the library's collectives do nothing. Beside the least that reading its weights and KV takes.
- library: NCCL with one rank in graphs that are captured as plans' are.

Prints JSON lines.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    ranks = commands.add_parser("ranks")
    ranks.add_argument("plan", type=Path)
    ranks.add_argument("--alone", type=Path)
    ranks.add_argument("--weights", help="a checkpoint")
    ranks.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    ranks.add_argument("--address", help=argparse.SUPPRESS)
    kernels = commands.add_parser("kernels")
    kernels.add_argument("folder", type=Path)
    loopback = commands.add_parser("loopback")
    loopback.add_argument("plan", type=Path)
    loopback.add_argument("--point", action="append", default=[], help="BATCH:CONTEXT of decode steps")
    loopback.add_argument("--prompt", action="append", default=[], type=int, help="tokens of a prompt")
    loopback.add_argument("--profile", action="store_true", help="also the time of each kernel")
    commands.add_parser("library")
    arguments = parser.parse_args()
    if arguments.command == "ranks" and arguments.rank is None:
        return _start(arguments.plan)
    from ranks import on_one_device

    getattr(on_one_device, arguments.command)(arguments)
    sys.stdout.flush()
    os._exit(0)  # what hangs at the end has nothing more to say


def _start(plan: Path) -> int:
    from tokenspeed.plans.integrity import ranks
    from tokenspeed.plans.reader import Plan

    with Plan.open(plan) as opened:
        count = ranks(opened.manifest)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}
    command = [sys.executable, __file__, *sys.argv[1:], "--address", address, "--rank"]
    running = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(count)]
    codes = [process.wait() for process in running]
    if any(codes):
        print(json.dumps({"ranks": "failed", "exit_codes": codes}))
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
