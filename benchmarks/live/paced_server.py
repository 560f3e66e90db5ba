"""`tokenspeed-run` over an engine without a machine (paced_engine.py): the same options, for plans of any target.

The command offers no other engine to its users, so two of its parts are replaced here: the one that starts the engine, and the
one that asks whether this host can run the plan.
"""

from __future__ import annotations

from functools import partial

from tokenspeed.plans.schema import Manifest
from tokenspeed.runtime import run_cli
from tokenspeed.runtime.entrypoint import launch

ENGINE = "tokenspeed.benchmarks.live.paced_engine"


def any_host(_: Manifest) -> None:
    """Nothing is computed."""


if __name__ == "__main__":
    run_cli.check_host = any_host
    launch.launch = partial(launch.launch, engine=ENGINE)
    run_cli.main()
