"""How long ranks take to sum, gather, scatter and exchange by message size: the vendor's library, and the kernels of plans.

    python benchmarks/collectives.py build FOLDER --target h200 --ranks 2     # anywhere, with Triton
    python benchmarks/collectives.py measure FOLDER [--only library|kernels]  # on the devices: this checkout and FOLDER

Built are kernels that sum through each other's memory: ways x columns x rows x blocks x warps, alone and with residual and norm.

Everything is in captured graphs, many calls in each, and timed by the device's events on the first rank; medians in microseconds.
Kernels are compared with float64 first. Each rank is a process that sees its own device alone. Prints JSON lines, then a table.
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
    made = commands.add_parser("build")
    made.add_argument("folder", type=Path)
    made.add_argument("--target", default="h200")
    made.add_argument("--ranks", type=int, default=2)
    measured = commands.add_parser("measure")
    measured.add_argument("folder", type=Path)
    measured.add_argument("--only", choices=("library", "kernels"))
    measured.add_argument("--rank", type=int, help="of the process; none: start all of them")
    measured.add_argument("--address")
    arguments = parser.parse_args()
    if arguments.command == "build":
        from ranks.building import build_exchanges

        print(json.dumps({"kernels": build_exchanges(arguments.target, arguments.ranks, arguments.folder)}))
        return 0
    if arguments.rank is None:
        return _start(arguments)
    from ranks.measuring import measure

    measure(arguments.folder, arguments.rank, arguments.address, arguments.only)
    return 0


def _start(arguments: argparse.Namespace) -> int:
    from ranks.bundle import read

    seen = [item for item in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if item]
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    running = []
    for rank in range(read(arguments.folder).ranks):
        command = [sys.executable, __file__, "measure", str(arguments.folder), "--rank", str(rank), "--address", address]
        command += ["--only", arguments.only] if arguments.only else []
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": seen[rank] if rank < len(seen) else str(rank)}
        running.append(subprocess.Popen(command, env=environment))
    return max(process.wait() for process in running)


if __name__ == "__main__":
    sys.exit(main())
