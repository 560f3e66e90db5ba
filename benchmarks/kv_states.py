"""Go through every order of events of models of scheduler and KV manager that are larger than the tests' own. Prints JSON.

    python benchmarks/kv_states.py [--states 200000] [--only NAME]

Each model is searched breadth first until no new state turns up, or there are so many; every state is checked as in the tests
(tests/runtime/scheduling/small_world.py). A violation ends the program with its message.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, replace

from tokenspeed.runtime.scheduling.policy import PLAIN
from tokenspeed.tests.runtime.scheduling.exploring import explore
from tokenspeed.tests.runtime.scheduling.small_world import Configuration, Prompt

SHARED = (Prompt("a", (1, 1, 1), 4, 1), Prompt("b", (1, 1, 2), 3, 1), Prompt("c", (1, 1), 2, 0))
RETURNING = (Prompt("a", (1, 1, 1), 2, 1), Prompt("b", (2, 2, 2), 3, 1), Prompt("c", (1, 1, 3), 2, 0))
LONG = (Prompt("a", (1, 1, 1, 1, 1), 2, 1), Prompt("b", (2, 2, 2, 2, 2), 2, 0), Prompt("c", (1, 1, 1, 1, 3), 2, 1))
BACK = (
    Prompt("a", (1, 1, 1), 2, 1),
    Prompt("b", (2, 2, 2, 2, 2), 1, 0),
    Prompt("c", (1, 1, 3), 2, 1),
    Prompt("d", (1, 1, 4), 2, 1),
)
TURNS = (
    Prompt("a", (1, 1, 1), 2, 1, "one"),
    Prompt("b", (2, 2, 2), 1, 0, "two", hint=90.0),
    Prompt("c", (1, 1, 1, 5, 1), 1, 1, "one"),
)
BY_REUSE = replace(PLAIN, retention=True, supersede=True)
BY_SESSION = replace(BY_REUSE, session_admission=True)

MODELS = {
    "shared prefixes": Configuration(SHARED, in_flight=2),
    "one host unit": Configuration(RETURNING, blocks=3, host_blocks=1, in_flight=2),
    "two host units": Configuration(RETURNING, blocks=3, host_blocks=2, in_flight=2),
    "loads over several steps": Configuration(LONG, blocks=5, host_blocks=3, in_flight=2),
    "two that come back": Configuration(BACK, blocks=4, host_blocks=2, in_flight=2),
    "a window": Configuration(LONG, blocks=4, windows=((3, 4),), in_flight=2, chunk=2),
    "two windows": Configuration(LONG, blocks=5, windows=((2, 4), (3, 5)), in_flight=2, chunk=2),
    "turns and time": Configuration(
        TURNS, blocks=3, policy=BY_REUSE, ticks=(61.0, 240.0), hints=("tool_call", "close"), in_flight=2
    ),
    "turns and a host tier": Configuration(
        TURNS, blocks=3, host_blocks=2, policy=BY_REUSE, ticks=(61.0, 240.0), hints=("end_of_turn",)
    ),
    "a tier on disk": Configuration(
        RETURNING, blocks=3, host_blocks=2, places=2, restored=((1, 1), (2, 2)), sequences=2, in_flight=1
    ),
    "a tier on disk and a step in flight": Configuration(
        RETURNING, blocks=3, host_blocks=1, places=1, restored=((1, 1),), in_flight=2
    ),
    "parked sessions": Configuration(TURNS, blocks=3, policy=BY_SESSION, ticks=(61.0,), hints=("close",)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--states", type=int, default=200_000, help="of each model, at most")
    parser.add_argument("--only", help="one of " + ", ".join(MODELS))
    options = parser.parse_args()
    results = []
    for name, model in MODELS.items():
        if options.only in (None, name):
            begun = time.process_time()
            found = explore(model, options.states)
            results.append({"model": name, **asdict(found), "processor_seconds": round(time.process_time() - begun, 1)})
            print(f"{name}: {found}", file=sys.stderr, flush=True)
    json.dump(results, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
