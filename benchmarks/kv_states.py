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
from dataclasses import asdict

from tokenspeed.tests.runtime.scheduling.small_world import Configuration, explore

MODELS = {
    "shared prefixes": Configuration((("a", (1, 1, 1), 4, 1), ("b", (1, 1, 2), 3, 1), ("c", (1, 1), 2, 0)), in_flight=2),
    "one host unit": Configuration(
        (("a", (1, 1, 1), 2, 1), ("b", (2, 2, 2), 3, 1), ("c", (1, 1, 3), 2, 0)), blocks=3, host_blocks=1, in_flight=2
    ),
    "two host units": Configuration(
        (("a", (1, 1, 1), 2, 1), ("b", (2, 2, 2), 3, 1), ("c", (1, 1, 3), 2, 0)), blocks=3, host_blocks=2, in_flight=2
    ),
    "loads over several steps": Configuration(
        (("a", (1, 1, 1, 1, 1), 2, 1), ("b", (2, 2, 2, 2, 2), 2, 0), ("c", (1, 1, 1, 1, 3), 2, 1)),
        blocks=5,
        host_blocks=3,
        in_flight=2,
    ),
    "two that come back": Configuration(
        (("a", (1, 1, 1), 2, 1), ("b", (2, 2, 2, 2, 2), 1, 0), ("c", (1, 1, 3), 2, 1), ("d", (1, 1, 4), 2, 1)),
        blocks=4,
        host_blocks=2,
        in_flight=2,
    ),
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
