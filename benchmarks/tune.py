"""Tunes the tiles of device kernels, and writes the table that they are chosen from (targets/triton/tables).

    python benchmarks/tune.py build FOLDER [--target h200]     # candidates, ahead of time; with Triton, needs no device
    python benchmarks/tune.py measure FOLDER [--out FILE]      # on the device; needs no Triton
    python benchmarks/tune.py write FILE...                    # the table of what was measured, of one or several runs

`--only TEXT...` restricts `build` and `measure` to cases whose names contain one of these: rows of other cases stay as they are
in the table.

Every candidate of a case runs on the same operands, and its numbers are compared with float64 before it is timed. It is timed in
a captured graph whose turns take weights or caches that the device's cache does not hold, candidates in turns, every other round
backwards; the best round counts.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gpu.tuning_cases import TuningCase, tuning_cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    build = actions.add_parser("build", help="make the candidates")
    build.add_argument("folder", type=Path)
    build.add_argument("--target", default="h200")
    build.add_argument("--earlier", type=Path, help="measurements of an earlier run: of what it measured, only the best is built")
    measure = actions.add_parser("measure", help="run them on this machine's device")
    measure.add_argument("folder", type=Path)
    measure.add_argument("--out", type=Path, help="where to, a file in the folder unless given")
    write = actions.add_parser("write", help="make or update the table")
    write.add_argument("files", type=Path, nargs="+")
    for action in (build, measure):
        action.add_argument("--only", default=[""], nargs="+", help="cases whose names contain one of these")
    options = parser.parse_args()
    if options.action == "build":
        from gpu.tuning_build import build_candidates

        made = build_candidates(options.target, _chosen(options.only), options.folder, _say, options.earlier)
        print(f"{sum(map(len, made.of_case.values()))} candidates in {options.folder}, {len(made.dropped)} dropped")
    elif options.action == "measure":
        from gpu.tuning_measure import measure_candidates

        measure_candidates(options.folder, _chosen(options.only), options.out, _say)
    else:
        from gpu.tile_writing import write_table

        print(write_table(options.files))


def _chosen(texts: list[str]) -> list[TuningCase]:
    return [item for item in tuning_cases() if any(text in item.case.name for text in texts)]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
