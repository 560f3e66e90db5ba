"""`tokenspeed-run` over an engine without a machine (paced_engine.py), with a few of its options."""

from __future__ import annotations

import argparse
import sys

from tokenspeed.plans.reader import Plan
from tokenspeed.runtime.entrypoint.launch import LaunchOptions, launch
from tokenspeed.runtime.entrypoint.service_tiers import DEFAULT_TIERS
from tokenspeed.runtime.startup_clock import StartupClock

ENGINE = "tokenspeed.benchmarks.live.paced_engine"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plan")
    parser.add_argument("--weights", help="of no consequence")
    parser.add_argument("--policy", default="agentic")
    parser.add_argument("--without", action="append", default=[])
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    options = LaunchOptions(
        plan=given.plan,
        weights=None,
        threads=None,
        pin_threads=False,
        overlap=True,
        verify=False,
        step_timeout=60.0,
        policy=given.policy,
        without=tuple(given.without),
        host="127.0.0.1",
        port=given.port,
        api_keys=(),
        tenant_keys=(),
        service_tiers=DEFAULT_TIERS,
        drain_timeout=5.0,
        prompt=None,
        chat=False,
        max_tokens=None,
        temperature=0.0,
        seed=None,
        as_json=given.json,
    )
    with Plan.open(given.plan) as plan:
        launch(plan, options, StartupClock(), ENGINE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
